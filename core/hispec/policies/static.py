"""The static policy: every level verifies after a fixed number of tokens, as in the paper (arXiv 2510.01336)."""

from collections.abc import Sequence
from typing import Protocol

from hispec.policies.base import Draft, Policy, Step, Verify


class Levels(Protocol):
    """The properties of a hierarchy that a static policy needs, for type checking."""

    @property
    def ngrams(self) -> object | None:
        """Return the n-gram look-up of the lowest level; None where it reads a model."""

    def __len__(self) -> int: ...


class StaticPolicy(Policy):
    """Lets level j verify as soon as `periods[j]` tokens of the level below it are waiting.

    Args:
        periods: one number for each level, at least 1; the first is unused. For HiSpec `(_, N_d, N_i)`.
    """

    def __init__(self, periods: Sequence[int]) -> None:
        self.periods = tuple(periods)

    @classmethod
    def of(cls, hierarchy: Levels, draft_tokens: int, validate_every: int) -> "StaticPolicy":
        """Return the policy with N_d for every level but the target and N_i for the target.

        N-gram drafts are verified at once, whatever their length.
        """
        periods = [1, *[draft_tokens] * (len(hierarchy) - 2), validate_every][-len(hierarchy) :]
        if hierarchy.ngrams:
            periods[1] = 1
        return cls(periods)

    def next_step(self, verified: Sequence[int], may_draft: bool) -> Step:
        """Return the verification by the highest level that has enough tokens waiting, else a draft."""
        for level in range(len(verified) - 1, 0, -1):
            if verified[level - 1] - verified[level] >= self.periods[level]:
                return Verify(level)
        if may_draft:
            return Draft(self.periods[1] - (verified[0] - verified[1]) if len(verified) > 1 else 1)
        return Verify(next(level for level in range(1, len(verified)) if verified[level] < verified[level - 1]))
