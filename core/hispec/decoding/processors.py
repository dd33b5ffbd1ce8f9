"""Logits processors of `transformers`, applied to drafts and verifications alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LogitsProcessor

LACKING = -1e30
"""The logit of a token that a level lacks. It acts like -inf, but processors do not turn it into NaN."""


class Processors:
    """Logits processors that depend on nothing but the text before a token and its logits.

    Drafts that are refused later are processed too, so a processor that remembers its earlier calls has no place here.

    Args:
        processors: applied in this order.
    """

    def __init__(self, processors: Sequence["LogitsProcessor"] = ()) -> None:
        self._processors = tuple(processors)

    def __repr__(self) -> str:
        return f"Processors({', '.join(type(processor).__name__ for processor in self._processors)})"

    def __bool__(self) -> bool:
        return bool(self._processors)

    def __call__(self, logits: Tensor, prefix: Sequence[int], waiting: Sequence[int] = ()) -> Tensor:
        """Return the processed logits, float32 [n, vocab]; the logits themselves where there are no processors.

        A score of +inf forces its token: every other token of the row becomes impossible. Where processors exclude all
        tokens that a level has, only tokens that it lacks remain.

        Args:
            logits: [n, vocab]; row i is for the token after `prefix + waiting[:i]`.
            prefix: the tokens before the first row's.
            waiting: the tokens between the rows, at least n - 1.
        """
        if not self._processors:
            return logits
        text = torch.tensor([[*prefix, *waiting]], dtype=torch.long, device=logits.device)
        scores = logits.to(torch.float32, copy=True)  # like `generate`; some processors modify their input
        scores.clamp_(min=LACKING)
        for i, row in enumerate(scores):
            row.copy_(self._process(text[:, : len(prefix) + i], row[None])[0])
        return _forced(scores)

    def _process(self, text: Tensor, scores: Tensor) -> Tensor:
        for processor in self._processors:
            scores = processor(text, scores)
        return scores


def _forced(scores: Tensor) -> Tensor:
    """Give the tokens with +inf a finite score, and exclude all others of their rows."""
    rows = scores.amax(-1).isposinf()
    if rows.any():
        scores[rows] = torch.where(scores[rows].isposinf(), 0.0, -torch.inf)
    return scores
