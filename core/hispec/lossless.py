"""The first difference of two outputs, and whether rounding or an error caused it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TIES = {"float32": 1e-4, "float16": 2**-9, "bfloat16": 2**-6}
"""The largest gap between the two best logits, as a share of the best, that rounding can explain, by dtype.

Kernels for one row and for several add in a different order. Of the half precisions this is two steps between
neighbouring numbers; float32 has steps far finer than what a chain of layers makes of them, hence its round figure.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token in which an output is not the target's own.

    Attributes:
        at: the index among the new tokens; the length of the shorter output if it is a prefix of the other.
        gap: between the target's two best logits there.
        kind: a `tie` is narrow enough for rounding to decide, an `error` is not.
    """

    at: int
    gap: float
    kind: Literal["tie", "error"]


def first_difference(ids: Sequence[int], reference: Sequence[int]) -> int | None:
    """Return index of the first token in which two outputs differ, or None; an output that is cut short differs at its
    end.
    """
    if list(ids) == list(reference):
        return None
    shorter = min(len(ids), len(reference))
    return next((i for i in range(shorter) if ids[i] != reference[i]), shorter)


def diagnose(at: int, best: float, second: float, dtype: str) -> Difference:
    """Tell a tie from an error.

    Args:
        at: the index where the outputs differ.
        best: the target's best logit there.
        second: the next best.
        dtype: the dtype of the target's weights, one of `TIES`.
    """
    gap = best - second
    return Difference(at, gap, "tie" if gap <= TIES[dtype] * max(1.0, abs(best)) else "error")
