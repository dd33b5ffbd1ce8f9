"""A hierarchy: the ordered levels from the cheapest to the target.

One level is plain autoregressive decoding, two are single-layer speculation, three are HiSpec; more simply work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hispec.models.stack import LayerStack, ReducedHead
from hispec.models.translator import Translator


@dataclass(frozen=True, slots=True)
class Ngrams:
    """N-grams that are looked up: of at most `longest` tokens, for at most `tokens` draft tokens, by a drafter of that name."""

    longest: int
    tokens: int
    drafter: str = "cache"


@dataclass(frozen=True, slots=True)
class Level:
    """One way to predict the next token: the hidden state after `exit_layer` layers of `stack`, read by its norm and head.

    A level of n-grams has no stack and runs no model; only the lowest level may be one. With a reduced head a level has
    some tokens only; the target has all. A translator maps the state before the norm reads it; the target has none.

    Attributes:
        weights: the precision of the weights that it reads, where these are a quantized copy of the target's.
    """

    name: str
    stack: LayerStack | None
    exit_layer: int
    reduced: ReducedHead | None = None
    translator: Translator | None = None
    ngrams: Ngrams | None = None
    weights: str | None = None

    @classmethod
    def of_ngrams(cls, longest: int, tokens: int, drafter: str = "cache") -> "Level":
        """Return a level that looks n-grams up."""
        return cls("guesses", None, 0, ngrams=Ngrams(longest, tokens, drafter))


class Hierarchy:
    """Levels in order; the last is the target. Levels of one stack share its cache and hidden states.

    Stacks that share a cache read one model at several precisions. A row of the cache is of the highest level that has
    run its token: a level neither runs nor writes over what a higher one on its cache has run.

    Args:
        levels: the levels, at least one. The exits of one stack ascend, and those of stacks that share a cache do not
            descend; the last level reads its stack's full depth.

    Raises:
        ValueError: the levels cannot form a hierarchy. Profiles are checked before, with messages for users.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        if not levels or levels[-1].stack is None:
            raise ValueError("a hierarchy needs at least its target")
        self.levels = tuple(levels)
        self.ngrams = levels[0].ngrams
        """The n-gram look-up of the lowest level; None where it reads a model."""
        self.beneath = tuple(
            tuple(i for i in range(j) if _share_cache(levels[i], level)) for j, level in enumerate(levels)
        )
        """For each level, the lower levels whose KV cache it shares."""
        self.below = tuple(
            beneath[-1] if beneath and levels[beneath[-1]].stack is level.stack else None
            for beneath, level in zip(self.beneath, levels, strict=True)
        )
        """For each level, the lower level from whose hidden states it resumes: the nearest one on its cache, if both
        read the same weights.
        """
        self.above: tuple[int | None, ...] = tuple(
            next((j for j in range(i + 1, len(levels)) if self.below[j] == i), None) for i in range(len(levels))
        )
        for j in range(self.ngrams is not None, len(levels)):
            least = max((levels[i].exit_layer for i in self.beneath[j]), default=1) + (self.below[j] is not None)
            if not least <= levels[j].exit_layer <= self.stack_of(j).num_layers:
                raise ValueError(f"level {levels[j].name}: exit {levels[j].exit_layer} is out of order or too deep")
        if self.target.exit_layer != self.stack_of(-1).num_layers:
            raise ValueError("the last level must be the whole target")
        if self.target.reduced is not None:
            raise ValueError("the target needs its whole head")
        if self.target.translator is not None:
            raise ValueError("the target must not have a translator")

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def target(self) -> Level:
        """Return the level whose tokens are final."""
        return self.levels[-1]

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """Return the distinct stacks, in order."""
        return tuple({id(level.stack): level.stack for level in self.levels if level.stack is not None}.values())

    def stack_of(self, level: int) -> LayerStack:
        """Return the model that a level reads; a level of n-grams reads none."""
        stack = self.levels[level].stack
        assert stack is not None, "a level of n-grams reads no model"
        return stack

    def first_layer(self, level: int) -> int:
        """Return the layer at which a level's own span begins."""
        below = self.below[level]
        return 0 if below is None else self.levels[below].exit_layer


def _share_cache(first: Level, second: Level) -> bool:
    """Return whether two levels read one KV cache."""
    return first.stack is not None and second.stack is not None and first.stack.cache is second.stack.cache
