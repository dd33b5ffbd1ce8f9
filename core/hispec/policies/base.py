"""The interface of policies: a policy chooses the next step, a draft or a verification."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from hispec.policies.confidence import Confidence

MIN_PROBABILITY = 0.05
"""About what one more row costs relative to a pass, where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A step in which a level proposes up to `tokens` more tokens in one call; levels below it do not take part.

    It proposes fewer where a token ends the text, where the length limit is reached, and where the policy, which sees
    the confidence of each token, asks it to stop. N-gram drafts need no pass of a model, so all tokens that are found
    may be proposed; but each is a row for the level that verifies them, so a token is left out if the probability that
    it and all before it are accepted is below `min_probability`.

    Attributes:
        tokens: the largest number of tokens.
        level: the index of the level that drafts; by default the lowest.
        fallback: the level that drafts one token where `level` has nothing to propose, as n-grams may; the next level
            by default.
        min_probability: the least probability of acceptance of an n-gram draft.
    """

    tokens: int = 1
    level: int = 0
    fallback: int | None = None
    min_probability: float = MIN_PROBABILITY


@dataclass(frozen=True, slots=True)
class Verify:
    """Let a level verify every token that it has not verified yet."""

    level: int


Step = Draft | Verify


class Policy(ABC):
    """Chooses the next step from how far each level has verified, and from the steps before.

    The choice does not affect the output: the target's token at a position is the same whatever was proposed.

    Attributes:
        features: the features of tokens that it reads, some of `hispec.policies.confidence.FEATURES`. Without any,
            `on_draft` and `on_verification` are not called.
    """

    features: tuple[str, ...] = ()

    @abstractmethod
    def next_step(self, verified: Sequence[int], may_draft: bool) -> Step:
        """Return the next step.

        Args:
            verified: for each level, the number of leading tokens that it has accepted or written; it never rises from
                level to level.
            may_draft: False when a tentative end of text or the length limit leaves nothing to draft. Some level
                then has tokens to verify.
        """

    def on_draft(self, level: int, confidence: Confidence) -> bool:
        """Learn of a token that `level` has just drafted, and return whether it should draft another."""
        return True

    def on_verification(  # noqa: B027
        self, level: int, proposed: int, accepted: int, passed: int, confidence: Sequence[Confidence]
    ) -> None:
        """Learn of a verification by `level`.

        Args:
            level: the index of the level that verified.
            proposed: the number of tokens that it verified.
            accepted: the number of these that it accepted.
            passed: the number of tokens added to what it has verified: those accepted, and its own correction or bonus.
            confidence: its confidence in each token that passed; empty for the target.
        """

    def on_timing(self, step: Step, seconds: float) -> None:  # noqa: B027
        """Learn how long a step took.

        Args:
            step: the step as it was taken, with the level that drafted and the number of its tokens.
            seconds: wall time.
        """
