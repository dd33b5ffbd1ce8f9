"""The costs of a hierarchy's steps: drafting a token with each level, and verifying some with each pair of levels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Pair = tuple[int, int]
"""A level whose tokens are verified, and the level that verifies them."""

ActiveLevels = tuple[int, ...]
"""The active levels, ascending; the last is the target."""

MAX_WAITING = 32
"""The largest number of tokens that wait to be verified; a pass over more is rarely worth its width."""


@dataclass(frozen=True)
class StepCosts:
    """The costs of steps, all in the same unit of time.

    Attributes:
        draft: the cost of drafting one token, by level; about 0 for n-grams.
        verify: the costs of verifying 1, 2, ... `MAX_WAITING` tokens, by pair of levels.
    """

    draft: Sequence[float]
    verify: Mapping[Pair, Sequence[float]]

    @classmethod
    def from_spans(
        cls,
        below: Sequence[int | None],
        span: Callable[[int, int], float],
        head: Callable[[int, int], float],
        *,
        ngrams: float | None = None,
        draft_overhead: Callable[[int], float] = lambda level: 0.0,
        verify_overhead: Callable[[int], float] = lambda level: 0.0,
    ) -> "StepCosts":
        """Return the costs of steps, added up from the spans of layers that they run.

        To draft, a level runs its own span and those of the levels that it resumes from. To verify tokens of a lower
        level, it runs the spans above that level.

        Args:
            below: for each level, the lower level whose hidden states it resumes from; None where it begins at layer 0.
            span: the cost of a level's own layers, by level and number of rows.
            head: the cost of its head, by level and number of rows.
            ngrams: the cost of an n-gram look-up where the lowest level is one; else None.
            draft_overhead: the other costs of drafting one token with a level.
            verify_overhead: the other costs of one verification by a level.
        """

        def spans(level: int | None, rows: int, above: int = -1) -> float:
            return 0.0 if level is None or level <= above else span(level, rows) + spans(below[level], rows, above)

        levels = range(len(below))
        draft = [
            ngrams if level == 0 and ngrams is not None else spans(level, 1) + head(level, 1) + draft_overhead(level)
            for level in levels
        ]
        verify = {
            (lower, upper): [
                spans(upper, rows, lower) + head(upper, rows) + verify_overhead(upper)
                for rows in range(1, MAX_WAITING + 1)
            ]
            for lower, upper in combinations(levels, 2)
        }
        return cls(draft, verify)

    def scaled(self, factor: float) -> "StepCosts":
        """Return the costs in another unit of time."""
        return StepCosts(
            [factor * cost for cost in self.draft],
            {pair: [factor * cost for cost in costs] for pair, costs in self.verify.items()},
        )

    def verification(self, pair: Pair, tokens: int) -> float:
        """Return the cost of verifying some tokens; of more than there are costs for, that of the largest number."""
        costs = self.verify[pair]
        return costs[min(tokens, len(costs)) - 1]

    def row(self, pair: Pair) -> float:
        """Return the mean additional cost of one more token in a verification."""
        costs = self.verify[pair]
        return max(0.0, costs[-1] - costs[0]) / max(1, len(costs) - 1)


def all_active_levels(levels: int) -> Iterator[ActiveLevels]:
    """Yield every subset of levels that ends in the target."""
    *lower, target = range(levels)
    for size in range(levels):
        for chosen in combinations(lower, size):
            yield (*chosen, target)
