"""The adaptive policy: after every token it weighs what one more would bring against the time that it costs.

Levels that take part form a chain of stages: a lower level writes, the next one verifies. For each stage the policy
keeps

- the *survival* of what waits there: the predicted probability that the next level accepts all of it, the product over
  the waiting tokens;
- the *pace*: tokens that passed this stage per unit of time that it and the stages below it spent.

One more token is useful only if all that wait before it survive, and it does itself: its expected worth is
survival x mean acceptance. It costs the time to bring it to this stage, 1 / pace of the stage below, and a row in the
verification. A stage that earns more per time on average than this next token would should be emptied now: the next
level verifies. This is the rule of optimal stopping for a ratio of sums (Dinkelbach, *On nonlinear fractional
programming*, 1967): at the best achievable pace, go on exactly while the marginal gain is worth its time.

When nothing waits, the policy also chooses which levels take part, the *team*: all, fewer, or the target alone,
whichever promises the most tokens per second (`hispec.decoding.knowledge`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from hispec.decoding.confidence import Confidence
from hispec.decoding.knowledge import MOST, Knowledge, Pair, Team
from hispec.decoding.policies import LEAST, Draft, Judge, Policy, Step
from hispec.decoding.prediction import chance_of

MEMORY = 0.97
"""What the past weighs at each verification, for a pace: some thirty of them count."""

LEARNING = 0.15
"""Step of the correction of predictions, in log-odds for each token that was wholly mispredicted."""

PRIOR = 40.0
"""Tokens that an expected pace counts for when decoding begins."""

RECONSIDERED = 8
"""Committed tokens after which the team is chosen anew."""


class Pace:
    """Tokens per unit of time, the more recent weighing more.

    Args:
        expected: what it is before anything was seen.
    """

    def __init__(self, expected: float) -> None:
        self._tokens, self._time = PRIOR, PRIOR / expected
        self._running = 0.0

    @property
    def value(self) -> float:
        """Tokens per unit of time."""
        return self._tokens / self._time

    def spend(self, time: float) -> None:
        """Add time on the way to the next tokens."""
        self._running += time

    def gain(self, tokens: int) -> None:
        """Add tokens that passed, for what was spent."""
        self._tokens = MEMORY * self._tokens + tokens
        self._time = MEMORY * self._time + self._running
        self._running = 0.0


@dataclass(eq=False)
class Stage:
    """A level's tokens on their way to the verification by the next level of the team.

    Attributes:
        pair: the two levels.
        pace: tokens that passed, for the time spent here and below.
        chances: per waiting token, the predicted probability of acceptance.
        drafted: of these tokens, how many were drafted and not handed up by the stage below.
        survival: of all that wait.
        least: the survival below which one more token would earn less for its time than the stage does on average.
    """

    pair: Pair
    pace: Pace
    chances: list[float] = field(default_factory=list)
    drafted: int = 0
    survival: float = 1.0
    least: float = 0.0

    def add(self, chance: float) -> bool:
        """Let one more token wait; return whether there is to be another."""
        self.chances.append(chance)
        self.survival *= chance
        return not self.is_full(len(self.chances))

    def is_full(self, tokens: int) -> bool:
        """Return whether what waits is to be verified now."""
        return self.survival < self.least or tokens >= MOST

    def empty(self) -> None:
        """Forget what waited: all was verified."""
        self.chances.clear()
        self.drafted, self.survival = 0, 1.0


class AdaptivePolicy(Policy):
    """Weighs worth against time, as the module says; one for each answer.

    Args:
        knowledge: shared with other answers, and added to.
    """

    def __init__(self, knowledge: Knowledge) -> None:
        self.features = knowledge.features
        self._knowledge = knowledge
        self._target = knowledge.levels - 1
        self._committed, self._spent = 0, 0.0
        """Tokens since the team was chosen; the cost of the steps since the last of them."""
        self._least = LEAST
        """The chance to be right below which a guess is not worth its row."""
        self._verified: tuple[Pair, int] | None = None
        """The last verification: whose tokens by whom, and how many."""
        self._team: Team = ()
        self._take(knowledge.fastest())

    @property
    def team(self) -> Team:
        """The levels that take part just now."""
        return self._team

    @property
    def _guesses(self) -> bool:
        """Whether n-gram drafts take part."""
        return self._knowledge.ngrams and self._team[0] == 0

    def next_step(self, judged: Sequence[int], may_draft: bool) -> Step:
        """See `Policy.next_step`."""
        if judged[0] == judged[-1] and self._committed >= RECONSIDERED:
            self._choose_team()
        waiting = [(stage, judged[stage.pair[0]] - judged[stage.pair[1]]) for stage in self._stages]
        for stage, tokens in waiting:
            if tokens and (stage.is_full(tokens) or not may_draft):
                return Judge(stage.pair[1])
            if tokens:
                break  # what waits below is verified before what waits above
        tokens = max(1, MOST - waiting[0][1]) if waiting else 1
        return Draft(tokens, self._team[0], self._team[1] if waiting else None, self._least)

    def drafted(self, level: int, confidence: Confidence) -> bool:
        """See `Policy.drafted`."""
        stage = self._of_level.get(level)
        if stage is None:
            return True
        stage.drafted += 1
        return stage.add(self._chance_of(stage.pair, confidence))

    def judged(self, level: int, proposed: int, accepted: int, passed: int, confidence: Sequence[Confidence]) -> None:
        """See `Policy.judged`."""
        at = next((at for at, stage in enumerate(self._stages) if stage.pair[1] == level), None)
        if at is None:
            return
        stage, known = self._stages[at], self._knowledge
        self._verified = stage.pair, proposed
        self._learn(stage, proposed, accepted)
        drafts = stage.drafted * known.draft_cost(stage.pair[0])
        self._spend(drafts + known.verify_cost(stage.pair, proposed), at)
        stage.pace.gain(passed)
        stage.empty()
        if self._guesses and at == 0:
            known.gain[level].see(passed, known.verify_cost(stage.pair, proposed) / known.draft_cost(level))
        if level == self._target:
            self._commit(passed)
        else:
            above = self._stages[at + 1]
            for sure in confidence:
                above.add(self._chance_of(above.pair, sure))
        self._set_limits()

    def timed(self, step: Step, seconds: float) -> None:
        """See `Policy.timed`."""
        known = self._knowledge
        if isinstance(step, Judge):
            if self._verified is not None:
                known.verified(*self._verified, seconds)
        elif not (known.ngrams and step.level == 0):
            cost = step.tokens * known.draft_cost(step.level)
            known.drafted(step.level, step.tokens, seconds)
            if self._guesses and step.level == self._team[1]:  # no n-gram was found
                known.gain[step.level].see(step.tokens, step.tokens)
            if step.level == self._target:
                self._spend(cost, 0)
                self._commit(step.tokens)

    def _chance_of(self, pair: Pair, confidence: Confidence) -> float:
        return chance_of(self._knowledge.log_odds[pair](confidence) + self._knowledge.shift[pair])

    def _set_limits(self) -> None:
        """Set where each stage stops: one more token is worth survival x mean, and costs its way here and a row."""
        known = self._knowledge
        each = known.draft_cost(self._team[0])
        for stage in self._stages:
            stage.least = stage.pace.value * (each + known.row_cost(stage.pair)) / known.acceptance[stage.pair].mean
            each = 1 / stage.pace.value
        if self._guesses:
            first = self._stages[0]
            self._least = first.pace.value * known.row_cost(first.pair)  # they cost nothing but their rows
            first.least = inf  # verified at once

    def _learn(self, stage: Stage, proposed: int, accepted: int) -> None:
        """Correct predictions by what became of the tokens; nobody knows of those after a rejected one."""
        known, seen = self._knowledge, min(proposed, accepted + 1)
        known.acceptance[stage.pair].see(accepted, seen)
        for at, chance in enumerate(stage.chances[:seen]):
            known.shift[stage.pair] += LEARNING * ((at < accepted) - chance)

    def _spend(self, cost: float, at: int) -> None:
        """Charge a step to its stage, those above it, and the team."""
        for stage in self._stages[at:]:
            stage.pace.spend(cost)
        self._spent += cost

    def _commit(self, tokens: int) -> None:
        """Compare what the target let through with what was expected for the time."""
        self._knowledge.throughput[self._team].see(tokens, self._spent * self._expected)
        self._committed, self._spent = self._committed + tokens, 0.0

    def _choose_team(self) -> None:
        """Take the fastest team, as far as is known by now."""
        self._knowledge.fade(self._committed)
        self._take(self._knowledge.fastest())

    def _take(self, team: Team) -> None:
        """Let these levels take part."""
        paces = self._knowledge.expected(team)
        if team != self._team:
            self._team = team
            self._stages = [Stage(pair, Pace(pace)) for pair, pace in zip(pairwise(team), paces, strict=False)]
            self._of_level = {stage.pair[0]: stage for stage in self._stages}
        self._expected, self._committed = paces[-1], 0
        self._set_limits()
