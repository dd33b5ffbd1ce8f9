"""A level's logits, over the words that it has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from hispec.decoding.confidence import Confidence, confidence_of
from hispec.decoding.sampling import no_numbers


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits of some rows, over a level's own words only; what it lacks has probability 0.

    Attributes:
        values: [n, words].
        ids: of these words, ascending, [words]; None: the words are 0, 1, 2...
        vocab_size: of the target; the number of words by default.
    """

    values: Tensor
    ids: Tensor | None = None
    vocab_size: int = 0

    def best(self) -> list[int]:
        """The likeliest word of each row, the first of equals; found among the level's words, whatever they stand for.

        Raises:
            UsageError: a row without one.
        """
        if "_two" in vars(self):  # already looked for
            two, words = self._two
            highest, best = [first for first, _ in two], [first for first, _ in words]
            if not all(map(math.isfinite, highest)):
                raise no_numbers()
            return best if self.ids is None else self.ids[best].tolist()
        return known(*self.best_unknown())

    def best_unknown(self) -> tuple[Tensor, Tensor]:
        """The same as the device has it, which is not waited for: (logits [n], words [n])."""
        highest, best = self._own().max(-1)
        return highest, best if self.ids is None else self.ids[best]

    def confidence(self, features: Sequence[str]) -> list[Confidence]:
        """How sure the level is of the likeliest word of each row; see `hispec.decoding.confidence`."""
        if tuple(features) == ("margin",):
            return [(first - second,) for first, second in self._two[0]]
        return confidence_of(self._own(), features)

    def full(self) -> Tensor:
        """Over the target's whole vocabulary, [n, vocab], -inf where the level has no word."""
        own = self._own()
        vocab = self.vocab_size or own.shape[-1]
        if self.ids is not None:
            return own.new_full((len(own), vocab), -torch.inf).index_copy_(1, self.ids, own)
        return pad(own, (0, vocab - own.shape[-1]), value=-torch.inf) if own.shape[-1] < vocab else own

    @cached_property
    def _two(self) -> tuple[list[list[float]], list[list[int]]]:
        """The two best logits of each row and their words, [n, 2] each."""
        values, indices = self._own().topk(2)
        return values.tolist(), indices.tolist()

    def _own(self) -> Tensor:
        """The level's words that the target knows too: another model may have more."""
        if self.ids is None and 0 < self.vocab_size < self.values.shape[-1]:
            return self.values[:, : self.vocab_size]
        return self.values


def known(highest: Tensor, words: Tensor) -> list[int]:
    """Likeliest words once the device has found them.

    Args:
        highest: their logits, [n].
        words: [n].

    Raises:
        UsageError: logits that are no numbers.
    """
    if not all(map(math.isfinite, highest.tolist())):
        raise no_numbers()
    found: list[int] = words.tolist()
    return found
