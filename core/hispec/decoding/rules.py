"""How a level draws a token and judges the tokens of the level before it."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first `accepted` tokens stay; `correction` replaces the next one, or is None when all stay."""

    accepted: int
    correction: int | None


class Rule(Protocol):
    """Draws and judges; one rule serves all levels."""

    def draw(self, logits: Tensor) -> int:
        """The token that a level proposes, from its logits [vocab]."""
        ...

    def judge(self, tokens: list[int], logits: Tensor) -> Verdict:
        """Judge `tokens` by a level's logits [len(tokens), vocab], each taken one position before its token."""
        ...


class Greedy:
    """Temperature 0: a level accepts a token iff it is the level's own arg-max, and corrects with its arg-max.

    The target's rule alone decides the output, which is therefore the target's own greedy text.
    """

    def draw(self, logits: Tensor) -> int:
        """See `Rule.draw`."""
        return int(logits.argmax())

    def judge(self, tokens: list[int], logits: Tensor) -> Verdict:
        """See `Rule.judge`."""
        for i, (token, own) in enumerate(zip(tokens, logits.argmax(-1).tolist(), strict=True)):
            if token != own:
                return Verdict(i, own)
        return Verdict(len(tokens), None)
