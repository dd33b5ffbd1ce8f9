"""Logits or scores of a level, over the tokens that it has."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hispec.errors import UsageError
from hispec.policies.confidence import Confidence, confidence_of, margin_of


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits of some rows, over a level's own tokens only; all other tokens have probability 0.

    Attributes:
        values: [n, vocab].
        ids: the token ids of the columns, ascending, [vocab]; None stands for 0, 1, 2...
        vocab_size: the target's vocabulary size; by default the number of columns.
        level: the name of the level, for error messages.
    """

    values: Tensor
    ids: Tensor | None = None
    vocab_size: int = 0
    level: str = "target"

    @cached_property
    def own(self) -> Tensor:
        """Return the logits of the tokens that the target has, [n, vocab]; another model may have more."""
        if self.ids is None and 0 < self.vocab_size < self.values.shape[-1]:
            return self.values[:, : self.vocab_size]
        return self.values

    def argmax(self) -> list[int]:
        """Return the argmax of each row as a token id, the first of equals.

        Raises:
            UsageError: a row without one.
        """
        if "_top_two" in vars(self):  # already computed
            two, words = self._top_two
            check_numbers((first for first, _ in two), self.level)
            return [first for first, _ in words]
        return wait_for_argmax(*self.argmax_async(), self.level)

    def argmax_async(self) -> tuple[Tensor, Tensor]:
        """Return the argmax of each row without waiting for the device: (logits [n], token ids [n])."""
        highest, best = self.own.max(-1)
        return highest, best if self.ids is None else self.ids[best]

    def top(self, count: int) -> list[list[int]]:
        """Return the token ids of the `count` highest logits of each row, fewer where the level has fewer tokens."""
        self.argmax()
        best = self.own.topk(min(count, self.own.shape[-1])).indices
        return (best if self.ids is None else self.ids[best]).tolist()

    def top_two(self) -> tuple[float, float]:
        """Return the two highest logits of the first row."""
        first, second = self._top_two[0][0]
        return first, second

    def confidence(self, features: Sequence[str]) -> list[Confidence]:
        """Return the level's confidence in each row's argmax; see `hispec.policies.confidence`."""
        if tuple(features) == ("margin",):
            return [(margin_of(first, second),) for first, second in self._top_two[0]]
        return confidence_of(self.own, features)

    def full(self) -> Tensor:
        """Return the logits of the target's whole vocabulary, [n, vocab], -inf where the level has no token."""
        vocab = self.vocab_size or self.own.shape[-1]
        if self.ids is not None:
            return self.own.new_full((len(self.own), vocab), -torch.inf).index_copy_(1, self.ids, self.own)
        return (
            pad(self.own, (0, vocab - self.own.shape[-1]), value=-torch.inf) if self.own.shape[-1] < vocab else self.own
        )

    def select(self, row: Tensor) -> Tensor:
        """Return the entries of a row over the target's vocabulary [vocab] that belong to the level's tokens."""
        return row[: self.own.shape[-1]] if self.ids is None else row[self.ids]

    def check(self) -> None:
        """Raise `UsageError` if a row has no highest number."""
        if not all(map(math.isfinite, self.own.amax(-1).tolist())):
            raise not_numbers(self.level)

    @cached_property
    def _top_two(self) -> tuple[list[list[float]], list[list[int]]]:
        """Return the two highest logits of each row and their token ids, [n, 2] each; -inf is second where there is only
        one.
        """
        values, indices = self.own.topk(min(2, self.own.shape[-1]))
        indices = indices if self.ids is None else self.ids[indices]
        if values.shape[-1] == 1:
            values, indices = pad(values, (0, 1), value=-torch.inf), pad(indices, (0, 1))
        return to_host(values, indices)


def wait_for_argmax(highest: Tensor, tokens: Tensor, level: str) -> list[int]:
    """Wait for the device and return the argmax of each row.

    Args:
        highest: their logits, [n].
        tokens: [n].
        level: the name of the level, for error messages.

    Raises:
        UsageError: a row has no finite highest logit.
    """
    numbers, found = to_host(highest, tokens)
    check_numbers(numbers, level)
    return found


def to_host(numbers: Tensor, indices: Tensor) -> tuple[list[Any], list[Any]]:
    """Return two tensors of one shape as lists, waiting for another device once.

    Args:
        numbers: a tensor of any dtype.
        indices: below 2 ** 53, which float64 holds exactly.
    """
    if numbers.device.type == "cpu":
        return numbers.tolist(), indices.tolist()
    both = torch.stack((numbers.double(), indices.double())).cpu()
    return both[0].tolist(), both[1].long().tolist()


def check_numbers(highest: Iterable[float], level: str) -> None:
    """Raise `UsageError` if the highest logit of a row is not a finite number."""
    if not all(map(math.isfinite, highest)):
        raise not_numbers(level)


def not_numbers(level: str) -> UsageError:
    """Return the error for logits that are NaN or infinite, or that exclude all tokens."""
    return UsageError(
        f"the {level} level gives no token a probability: its logits are not numbers, or all are excluded",
        "try --dtype float32, and check the weights and what excludes tokens",
    )
