"""When to draft on and when to let which level judge."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from hispec.decoding.confidence import Confidence
from hispec.decoding.hierarchy import Hierarchy

LEAST = 0.05
"""About what a row more costs beside a pass, where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Let a level propose up to `tokens` more in one call, the cheapest one by default.

    It proposes fewer where an end of text is among them, where there is no room for more, and where the policy, which
    is told of each, has seen enough. Where it proposes nothing, as n-grams may, the level `otherwise` drafts one token,
    by default the next. Levels below it do not take part.

    Guesses cost no pass, so all that are found may be proposed, `tokens` or more; but as each is a row for the level
    that verifies them, none is of which it is less likely than `least` that it and all before it are right.
    """

    tokens: int = 1
    level: int = 0
    otherwise: int | None = None
    least: float = LEAST


@dataclass(frozen=True, slots=True)
class Judge:
    """Let a level judge every token that it has not judged yet."""

    level: int


Step = Draft | Judge


class Policy(ABC):
    """Chooses the next step from how far each level has judged, and from what it was told of the steps before.

    The choice may depend on anything: the target's token at a position is the same whatever was proposed.

    Attributes:
        features: what it wants to know of tokens, some of `hispec.decoding.confidence.FEATURES`.
    """

    features: tuple[str, ...] = ()

    @abstractmethod
    def next_step(self, judged: Sequence[int], may_draft: bool) -> Step:
        """Choose.

        Args:
            judged: per level, the number of leading tokens it stands behind; never rising from level to level.
            may_draft: False when a tentative end of text or the length limit leaves nothing to draft. Some level
                then has tokens to judge.
        """

    def drafted(self, level: int, confidence: Confidence) -> bool:
        """Learn of a token that `level` has just drafted, if it wants features; whether the run goes on."""
        return True

    def judged(  # noqa: B027
        self, level: int, proposed: int, accepted: int, passed: int, confidence: Sequence[Confidence]
    ) -> None:
        """Learn of a judgement by `level`, if it wants features.

        Args:
            level: that judged.
            proposed: tokens that waited for it.
            accepted: of them.
            passed: tokens that it stands behind now: those accepted, and its own correction or bonus.
            confidence: how sure it is of what passed; empty from the target.
        """

    def timed(self, step: Step, seconds: float) -> None:  # noqa: B027
        """Learn what a step took.

        Args:
            step: that was taken: how many tokens were drafted, and by which level.
            seconds: on the clock.
        """


class StaticPolicy(Policy):
    """The paper's: level j judges as soon as `periods[j]` tokens of the level before it are waiting.

    Args:
        periods: one count per level, at least 1; the first is unused. For HiSpec `(_, N_d, N_i)`.
    """

    def __init__(self, periods: Sequence[int]) -> None:
        self.periods = tuple(periods)

    @classmethod
    def of(cls, hierarchy: Hierarchy, draft_tokens: int, validate_every: int) -> "StaticPolicy":
        """N_d below every level but the target, N_i below the target; n-gram drafts are judged at once, whole."""
        periods = [1, *[draft_tokens] * (len(hierarchy) - 2), validate_every][-len(hierarchy) :]
        if hierarchy.ngrams:
            periods[1] = 1
        return cls(periods)

    def next_step(self, judged: Sequence[int], may_draft: bool) -> Step:
        """See `Policy.next_step`."""
        for level in range(len(judged) - 1, 0, -1):
            if judged[level - 1] - judged[level] >= self.periods[level]:
                return Judge(level)
        if may_draft:
            return Draft(self.periods[1] - (judged[0] - judged[1]) if len(judged) > 1 else 1)
        return Judge(next(level for level in range(1, len(judged)) if judged[level] < judged[level - 1]))
