"""From logits to the distribution that a token is drawn from, and the randomness that draws it.

Every level's logits take the same way (`Sampling.distribution`), and acceptance later uses the very tensor that a
token was drawn from.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hispec.decoding.processors import Processors
from hispec.errors import UsageError

Purpose = Literal["draw", "accept", "redraw"]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen, in the order and with the meaning that `transformers` gives these names.

    Attributes:
        temperature: 0 is greedy: the likeliest token, always.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens that together have this probability; 1 keeps all.
        min_p: keep tokens at least this share as likely as the likeliest; 0 keeps all.
        processors: applied to the logits before all else, in greedy decoding too.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    processors: Processors = field(default_factory=Processors)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature == 0

    def distribution(self, logits: Tensor, prefix: Sequence[int], waiting: Sequence[int] = ()) -> Tensor:
        """The probabilities that tokens are drawn from, float32 [n, vocab]; arguments as `Processors`.

        Only for a temperature above 0.
        """
        logits = self.processors(logits, prefix, waiting).float() / self.temperature
        if self.top_k:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            beyond = before >= self.top_p
            beyond[:, 0] = False
            logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
        if self.min_p:
            probabilities = logits.softmax(-1)
            logits = logits.masked_fill(probabilities < self.min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
        return logits.softmax(-1)


def no_numbers() -> UsageError:
    """For logits that are NaN, infinite, or leave no token possible."""
    return UsageError(
        "the model gives no token a probability: its logits are not numbers, or all are excluded",
        "try --dtype float32, and check the weights and what excludes tokens",
    )


class Randomness:
    """One independent stream of random numbers for every level and every purpose.

    Drafting and redrawing from one stream biases the output although acceptance looks normal; so nothing is shared.

    Args:
        seed: equal seeds give equal streams on the same machine.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[tuple[int, Purpose], Iterator[float]] = {}

    def uniform(self, level: int, purpose: Purpose, count: int = 1) -> list[float]:
        """`count` numbers in [0, 1)."""
        stream = self._stream(level, purpose)
        return [next(stream) for _ in range(count)]

    def choose(self, probabilities: Tensor, level: int, purpose: Purpose) -> int:
        """An index drawn from probabilities [vocab], which need not sum to exactly 1.

        Raises:
            UsageError: they are not numbers, or all 0.
        """
        (number,) = self.uniform(level, purpose)
        cumulative = probabilities.cumsum(0, dtype=torch.float64)
        total = float(cumulative[-1])
        if not 0 < total < math.inf:
            raise no_numbers()
        index = int(torch.searchsorted(cumulative, number * total, right=True))
        if index == len(cumulative):  # rounding put the number at the very end: the last token that can be drawn
            index = int(probabilities.nonzero()[-1])
        return index

    def _stream(self, level: int, purpose: Purpose) -> Iterator[float]:
        key = (level, purpose)
        if key not in self._streams:
            self._streams[key] = _uniform(f"{self._seed}/{level}/{purpose}")
        return self._streams[key]


def _uniform(seed: str) -> Iterator[float]:
    """Endless numbers in [0, 1), drawn in batches: one call of torch costs as much as a hundred numbers."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1)
    while True:
        yield from torch.rand(100, generator=generator, dtype=torch.float64).tolist()
