"""A mask excludes tokens that must not follow a text. It depends on the text only, and is the same for every level."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hispec.decoding.processors import LACKING


class Mask(Protocol):
    """Tells which tokens may follow a text. It may be asked about texts in any order: rejections take tokens back."""

    def allowed(self, text: Sequence[int]) -> Tensor:
        """Return which tokens may follow, bool [vocab]; at least one, and all where the text itself is forbidden.

        Args:
            text: prompt and answer.
        """
        ...

    def fitting(self, text: Sequence[int], tokens: Sequence[int]) -> int:
        """Return how many leading ones of some tokens may follow a text, each after those before it; an end need not."""
        ...


def masked(mask: Mask, scores: Tensor, logits: Tensor, prefix: Sequence[int], waiting: Sequence[int]) -> Tensor:
    """Return scores without the tokens that a mask forbids, float32 [n, vocab].

    If processors exclude all tokens of a row that the mask allows, only the mask applies.

    Args:
        scores: processed, [n, vocab]; row i is for the token after `prefix + waiting[:i]`.
        logits: the logits that they were made from, [n, vocab].
        prefix: the tokens before the first row's.
        waiting: the tokens between the rows, at least n - 1.
    """
    text = [*prefix, *waiting]
    forbidden = torch.stack([~mask.allowed(text[: len(prefix) + i]) for i in range(len(scores))])
    left = scores.float().masked_fill(forbidden, -torch.inf)
    stuck = left.amax(-1, keepdim=True).isneginf()
    # If a level lacks all allowed tokens, it drafts one of its own, which the next level verifies like any other.
    return torch.where(stuck, logits.float().clamp(min=LACKING).masked_fill(forbidden, -torch.inf), left)
