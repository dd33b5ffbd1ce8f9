"""The adaptive policy: after every token it weighs what one more would bring against the time that it costs.

Levels in play form a chain of stages: a lower level writes, the next one judges. For each stage the policy keeps

- the *survival* of what waits there: the predicted probability that the next level accepts all of it, the product over
  the waiting tokens;
- the *pace*: tokens that passed this stage per unit of time that it and the stages below it spent.

One more token is useful only if all that wait before it survive, and it does itself: its expected worth is
survival x mean acceptance. It costs the time to bring it to this stage, 1 / pace of the stage below, and a row in the
judgement. A stage that earns more per time on average than this next token would should be emptied now: the next level
judges. This is the rule of optimal stopping for a ratio of sums (Dinkelbach, *On nonlinear fractional programming*,
1967): at the best achievable pace, go on exactly while the marginal gain is worth its time.

Before each cycle, when nothing waits, the policy also chooses which levels take part, the *team*: all, fewer, or the
target alone, whichever had the best pace; now and then it tries another. All time is counted in costs that were measured before, never by the clock, so that equal
seeds take equal steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from math import inf

from hispec.decoding.confidence import Confidence
from hispec.decoding.policies import Draft, Judge, Policy, Step
from hispec.decoding.prediction import Logistic, Predictor, bounded, chance_of, reading

Pair = tuple[int, int]
"""Level whose tokens they are, and the level that judges them."""

Team = tuple[int, ...]
"""Levels that take part, ascending; the last is the target."""

MOST = 32
"""Tokens that wait for a judgement at most; a judgement of more is seldom worth its width."""

MEMORY = 0.97
"""What the past weighs at each judgement, for a pace: some thirty of them count."""

LEARNING = 0.15
"""Step of the correction of predictions, in log-odds for each token that was wholly mispredicted."""

FORGETTING = 0.05
"""What one more judged token weighs in the mean acceptance of a stage."""

FIRST_TRIAL, LAST_TRIAL = 64, 1024
"""Tokens until another team is tried; each trial that changes nothing doubles it, up to the latter."""

TRIAL = 16
"""Tokens that a trial lasts, about."""

PRIOR = 40.0
"""Tokens that an expected pace counts for when decoding begins."""

AT_ONCE = Logistic((0.0, 0.0, 0.0), 0.5, ("margin",))
"""Of n-gram drafts nothing is predicted: they are judged at once."""


@dataclass(frozen=True)
class StepCosts:
    """What steps cost, in any one unit of time.

    Attributes:
        draft: by level, of writing one token; of n-grams about 0.
        judge: by pair, item k of judging k + 1 tokens, for up to `MOST`.
    """

    draft: Sequence[float]
    judge: Mapping[Pair, Sequence[float]]

    def of_judging(self, pair: Pair, tokens: int) -> float:
        """What one judgement costs."""
        costs = self.judge[pair]
        return costs[min(tokens, len(costs)) - 1]

    def row(self, pair: Pair) -> float:
        """What one more token adds to a judgement, on average."""
        costs = self.judge[pair]
        return max(0.0, costs[-1] - costs[0]) / max(1, len(costs) - 1)


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
        """Time on the way to the next tokens."""
        self._running += time

    def gain(self, tokens: int) -> None:
        """Tokens that passed, for what was spent."""
        self._tokens = MEMORY * self._tokens + tokens
        self._time = MEMORY * self._time + self._running
        self._running = 0.0


@dataclass(eq=False)
class Stage:
    """A level's tokens on their way to the judgement of the next level of the team.

    Attributes:
        pair: the two levels.
        pace: tokens that passed, for the time spent here and below.
        mean: acceptance, lately.
        row: what one more token adds to a judgement.
        chances: per waiting token, the predicted probability of acceptance.
        drafted: of these tokens, how many were drafted and not handed up by the stage below.
        survival: of all that wait.
        least: the survival below which one more token would earn less for its time than the stage does on average.
    """

    pair: Pair
    pace: Pace
    mean: float
    row: float
    chances: list[float] = field(default_factory=list)
    drafted: int = 0
    survival: float = 1.0
    least: float = 0.0

    def add(self, chance: float) -> bool:
        """One more token waits; whether there is to be another."""
        self.chances.append(chance)
        self.survival *= chance
        return not self.is_full(len(self.chances))

    def is_full(self, tokens: int) -> bool:
        """Whether what waits is to be judged now."""
        return self.survival < self.least or tokens >= MOST

    def empty(self) -> None:
        """All were judged."""
        self.chances.clear()
        self.drafted, self.survival = 0, 1.0


class Knowledge:
    """What the policy knows before decoding begins; shared by all answers.

    Args:
        levels: how many.
        costs: of steps.
        predictors: by pair, what predicts acceptance; a pair without one is a level of n-grams, whose drafts are
            judged at once, and the level that judges them.
        paces: by team, what to expect of it, tokens per unit of time; the others' are worked out from mean acceptance.
        teams: that may be chosen; all by default.

    Attributes:
        features: that the predictors read.
        stages: by team, (pair, expected pace) of each of its stages.
    """

    def __init__(
        self,
        levels: int,
        costs: StepCosts,
        predictors: Mapping[Pair, Predictor],
        paces: Mapping[Team, float] | None = None,
        teams: Sequence[Team] = (),
    ) -> None:
        self.levels, self.costs = levels, costs
        self.ngrams = not costs.judge.keys() <= predictors.keys()
        """Whether the lowest level looks n-grams up."""
        predictors = {pair: predictors.get(pair, AT_ONCE) for pair in costs.judge}
        self.predictors = predictors
        self.features = tuple(dict.fromkeys(name for p in predictors.values() for name in p.features)) or ("margin",)
        self.log_odds = {pair: reading(predictor, self.features) for pair, predictor in predictors.items()}
        self.rows = {pair: costs.row(pair) for pair in costs.judge}
        self.stages = {
            team: expected_paces(team, costs, predictors) for team in teams or all_teams(levels, ngrams=self.ngrams)
        }
        alone = 1 / costs.draft[levels - 1]
        self.paces = {
            team: (paces or {}).get(team) or (stages[-1][1] if stages else alone)
            for team, stages in self.stages.items()
        }


class AdaptivePolicy(Policy):
    """See the module; one for each answer, so that equal seeds take equal steps whatever was decoded before."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.features = knowledge.features
        self._knowledge, self._costs = knowledge, knowledge.costs
        self._target = knowledge.levels - 1
        self._shift = dict.fromkeys(knowledge.predictors, 0.0)
        self._stages_of = {
            team: [
                Stage(pair, Pace(pace), knowledge.predictors[pair].mean, knowledge.rows[pair]) for pair, pace in stages
            ]
            for team, stages in knowledge.stages.items()
        }
        self._paces = {team: Pace(pace) for team, pace in knowledge.paces.items()}
        self._tried = dict.fromkeys(self._paces, 0)
        self._trial = self._until_trial = FIRST_TRIAL
        self._best = self._team = self._fastest()
        self._take(self._team)

    @property
    def team(self) -> Team:
        """The levels that take part just now."""
        return self._team

    def next_step(self, judged: Sequence[int], may_draft: bool) -> Step:
        """See `Policy.next_step`."""
        if judged[0] == judged[-1]:
            self._choose_team()
        waiting = [(stage, judged[stage.pair[0]] - judged[stage.pair[1]]) for stage in self._stages]
        for stage, tokens in waiting:
            if tokens and (stage.is_full(tokens) or not may_draft):
                return Judge(stage.pair[1])
            if tokens:
                break  # what waits below is judged before what waits above
        return Draft(max(1, MOST - waiting[0][1]) if waiting else 1, self._team[0])

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
        stage = self._stages[at]
        self._learn(stage, proposed, accepted)
        drafts = stage.drafted * self._costs.draft[stage.pair[0]]
        self._spend(drafts + self._costs.of_judging(stage.pair, proposed), at)
        stage.pace.gain(passed)
        stage.empty()
        self._set_limits()
        if level == self._target:
            self._paces[self._team].gain(passed)
            self._until_trial -= passed
        else:
            above = self._stages[at + 1]
            for sure in confidence:
                above.add(self._chance_of(above.pair, sure))

    def _chance_of(self, pair: Pair, confidence: Confidence) -> float:
        return chance_of(self._knowledge.log_odds[pair](confidence) + self._shift[pair])

    def _set_limits(self) -> None:
        """Where each stage stops: one more token is worth survival x mean, and costs its way here and a row."""
        each = self._costs.draft[self._team[0]]
        for stage in self._stages:
            stage.least = stage.pace.value * (each + stage.row) / stage.mean
            each = 1 / stage.pace.value
        if self._knowledge.ngrams and self._team[0] == 0:
            self._stages[0].least = inf  # judged at once

    def _learn(self, stage: Stage, proposed: int, accepted: int) -> None:
        """Correct the predictions by what became of the tokens; nobody knows of those after a refused one."""
        for at in range(min(proposed, accepted + 1)):
            outcome = at < accepted
            stage.mean += FORGETTING * (outcome - stage.mean)
            if at < len(stage.chances):
                self._shift[stage.pair] += LEARNING * (outcome - stage.chances[at])

    def _spend(self, cost: float, at: int) -> None:
        """Charge a step to its stage, those above it, and the team."""
        for stage in self._stages[at:]:
            stage.pace.spend(cost)
        self._paces[self._team].spend(cost)

    def _choose_team(self) -> None:
        """Take the fastest team; when it is time for a trial, another one for some tokens."""
        if len(self._team) == 1:  # the target alone: nobody judges
            self._until_trial -= 1
        if self._until_trial > -TRIAL and self._team != self._best:
            return  # a trial goes on
        if self._team != self._best:
            self._trial = FIRST_TRIAL if self._fastest() != self._best else min(LAST_TRIAL, 2 * self._trial)
            self._until_trial = self._trial
        self._best = self._team = self._fastest()
        others = [team for team in self._paces if team != self._best]
        if self._until_trial <= 0 and others:
            self._team = max(others, key=self._promise)
            self._tried[self._team] += 1
            self._until_trial = 0
        self._take(self._team)

    def _take(self, team: Team) -> None:
        """Let these levels take part."""
        self._stages = self._stages_of[team]
        self._of_level = {stage.pair[0]: stage for stage in self._stages}
        self._set_limits()

    def _fastest(self) -> Team:
        return max(self._paces, key=lambda team: self._paces[team].value)

    def _promise(self, team: Team) -> float:
        """Of a trial: the team's pace, and the more the less often it was tried."""
        return self._paces[team].value / (1 + self._tried[team])


def all_teams(levels: int, *, ngrams: bool) -> Iterator[Team]:
    """Every subset of levels that ends in the target; one of n-grams comes with the next, which steps in for it."""
    *lower, target = range(levels)
    for size in range(levels):
        for chosen in combinations(lower, size):
            team = (*chosen, target)
            if not (ngrams and team[0] == 0 and team[1] != 1):
                yield team


def expected_paces(team: Team, costs: StepCosts, predictors: Mapping[Pair, Predictor]) -> list[tuple[Pair, float]]:
    """Of each stage of a team, the pace with its mean acceptance and the best fixed length."""
    stages: list[tuple[Pair, float]] = []
    each = costs.draft[team[0]]
    for pair in pairwise(team):
        mean = bounded(predictors[pair].mean)
        pace = max(
            (1 - mean**count) / (1 - mean) / (count * each + costs.of_judging(pair, count))
            for count in range(1, MOST + 1)
        )
        stages.append((pair, pace))
        each = 1 / pace
    return stages
