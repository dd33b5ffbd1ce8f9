"""What the adaptive policy knows: what steps cost, how many tokens are accepted, and the throughput that follows.

It begins with what a calibration, or a measurement when the model was loaded, has given, and learns from every step.
What was seen long ago counts less, so that it follows a text that changes its character, and so that levels that once
did badly are tried again. Where little was seen, hopes are high: see `Acceptance.hoped`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import exp, log, sqrt
from typing import Literal

from hispec.decoding.prediction import Logistic, Predictor, bounded, reading

Pair = tuple[int, int]
"""A level whose tokens they are, and the level that verifies them."""

Team = tuple[int, ...]
"""Levels that take part, ascending; the last is the target."""

Kind = tuple[Literal["draft", "verify"], int, int]
"""Steps that cost alike: what is done, by which level, and the magnitude of the number of rows."""

MOST = 32
"""The most tokens that wait to be verified; a pass over more is seldom worth its width."""

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, MOST)
"""Numbers of drafted tokens that are weighed against each other."""

FADING = 0.995
"""What was seen weighs so much less with every token that the target commits: half of it after 140."""

FOLLOWING, ADJUSTING = 0.2, 0.1
"""Steps of the estimates of how slow the machine is, and of how much dearer one kind of step is than expected."""

EXPECTED = 24.0
"""Tokens that an expected throughput counts for, beside the throughput that was seen."""

NGRAM_GAIN = 1.05
"""What n-gram drafts are hoped to add to the throughput of the level that verifies them, before any was."""

AT_ONCE = Logistic((0.0, 0.0, 0.0), 0.5, ("margin",))
"""Of n-gram drafts nothing is predicted: they are verified at once."""


@dataclass(frozen=True)
class StepCosts:
    """What steps cost, in any one unit of time.

    Attributes:
        draft: by level, of writing one token; of n-grams about 0.
        judge: by pair, item k of verifying k + 1 tokens, for up to `MOST`.
    """

    draft: Sequence[float]
    judge: Mapping[Pair, Sequence[float]]

    def of_judging(self, pair: Pair, tokens: int) -> float:
        """Return what one verification costs."""
        costs = self.judge[pair]
        return costs[min(tokens, len(costs)) - 1]

    def row(self, pair: Pair) -> float:
        """Return what one more token adds to a verification, on average."""
        costs = self.judge[pair]
        return max(0.0, costs[-1] - costs[0]) / max(1, len(costs) - 1)


class Seen:
    """A ratio of what came to what might have come, of which old sights count less.

    Args:
        ratio: what is expected.
        weight: chances that this counts for.
    """

    def __init__(self, ratio: float, weight: float) -> None:
        self._expected, self._weight = ratio, weight
        self._came = self._seen = 0.0

    @property
    def mean(self) -> float:
        """The ratio, as far as is known by now."""
        return (self._expected * self._weight + self._came) / (self._weight + self._seen)

    def see(self, came: float, seen: float) -> None:
        """Count what came, of what might have."""
        self._came += came
        self._seen += seen

    def fade(self, share: float) -> None:
        """Let what was seen count for so much of what it did."""
        self._came *= share
        self._seen *= share


class Acceptance(Seen):
    """The share of a level's tokens that another level accepts.

    Args:
        mean: what is expected.
        weight: tokens that this counts for.
    """

    def __init__(self, mean: float, weight: float) -> None:
        super().__init__(bounded(mean), weight)

    @property
    def hoped(self) -> float:
        """The share with one standard deviation added: levels of which little is known are given a try."""
        mean = self.mean
        return bounded(mean + sqrt(mean * (1 - mean) / (self._weight + self._seen)))


class Throughput(Seen):
    """Tokens as a multiple of those that were expected.

    Args:
        ratio: what it is expected to be.
    """

    def __init__(self, ratio: float = 1.0) -> None:
        super().__init__(ratio, EXPECTED)


class Clock:
    """How much more steps take than they were expected to, one kind of step beside the others.

    A machine that is busy, or faster than when costs were measured, slows or speeds all kinds: that changes no choice,
    and is told apart from a kind that was measured wrongly by what the passes of the target take, which all ways of
    decoding have.
    """

    def __init__(self) -> None:
        self._machine: float | None = None
        self._kinds: dict[Kind, float] = {}
        self._last: Kind | None = None

    def factor(self, kind: Kind) -> float:
        """Return what to multiply a cost of this kind with."""
        return exp(self._kinds.get(kind, 0.0))

    def see(self, kind: Kind, expected: float, seconds: float, *, target: bool) -> None:
        """Learn what a step took.

        Args:
            kind: of step.
            expected: its cost, with its factor.
            seconds: that it took.
            target: whether it was a pass of the target.
        """
        if seconds <= 0 or expected <= 0 or (self._machine is None and not target):
            return
        ratio = log(seconds / expected)
        if self._machine is None:
            self._machine = ratio
        surprise = min(1.0, max(-1.0, ratio - self._machine))  # one odd step must not weigh without limit
        if target:
            self._machine += FOLLOWING * surprise
        if self._last not in (None, kind):  # of one kind alone it is not known whether it is the machine
            self._kinds[kind] = self._kinds.get(kind, 0.0) + ADJUSTING * surprise
        self._last = kind


class Knowledge:
    """What the policy knows; shared by all answers of a session, each of which adds to it.

    Args:
        levels: how many.
        costs: of steps.
        predictors: by pair, what predicts acceptance; a pair without one is a level of n-grams, whose drafts are
            verified at once, and the level that verifies them.
        paces: by team, tokens per unit of time to expect of it; the others' are worked out from mean acceptance.
        teams: that may be chosen; all by default.
        bonus: levels whose verification of n tokens yields up to n + 1.

    Attributes:
        features: that the predictors read.
        acceptance: by pair, what was learned.
        shift: by pair, the correction of its predictor, in log-odds.
        clock: what steps were seen to take.
        throughput: by team, what came of it beside what was expected.
        gain: by the level that verifies n-grams, its throughput with them beside that without.
    """

    def __init__(
        self,
        levels: int,
        costs: StepCosts,
        predictors: Mapping[Pair, Predictor],
        paces: Mapping[Team, float] | None = None,
        teams: Sequence[Team] = (),
        bonus: Sequence[int] = (),
    ) -> None:
        self.levels, self.costs, self.bonus = levels, costs, frozenset(bonus)
        self.ngrams = not costs.judge.keys() <= predictors.keys()
        """Whether the lowest level looks n-grams up."""
        predictors = {pair: predictors.get(pair, AT_ONCE) for pair in costs.judge}
        self.predictors = predictors
        self.features = tuple(dict.fromkeys(name for p in predictors.values() for name in p.features)) or ("margin",)
        self.log_odds = {pair: reading(predictor, self.features) for pair, predictor in predictors.items()}
        self.acceptance = {pair: Acceptance(p.mean, p.weight) for pair, p in predictors.items()}
        self.shift = dict.fromkeys(predictors, 0.0)
        self.clock = Clock()
        self.gain = {level: Throughput(NGRAM_GAIN) for level in range(levels)}
        self.teams = tuple(teams) or tuple(all_teams(levels))
        self.throughput = {team: Throughput() for team in self.teams}
        self.paces = {team: self.expected(team)[-1] for team in self.teams}
        """By team, what is expected of it before anything was seen."""
        for team, pace in (paces or {}).items():
            if team in self.throughput:
                self.throughput[team] = Throughput(pace / self.paces[team])
                self.paces[team] = pace

    def draft_cost(self, level: int) -> float:
        """Return what a token that a level writes costs."""
        return self.costs.draft[level] * self.clock.factor(self._drafting(level))

    def verify_cost(self, pair: Pair, tokens: int) -> float:
        """Return what verifying so many tokens costs, the bonus token's row included."""
        rows = tokens + (pair[1] in self.bonus)
        return self.costs.of_judging(pair, rows) * self.clock.factor(_verifying(pair[1], rows))

    def drafted(self, level: int, tokens: int, seconds: float) -> None:
        """Learn what drafting took."""
        expected = tokens * self.draft_cost(level)
        self.clock.see(self._drafting(level), expected, seconds, target=level == self.levels - 1)

    def verified(self, pair: Pair, tokens: int, seconds: float) -> None:
        """Learn what a verification took."""
        kind = _verifying(pair[1], tokens + (pair[1] in self.bonus))
        self.clock.see(kind, self.verify_cost(pair, tokens), seconds, target=pair[1] == self.levels - 1)

    def _drafting(self, level: int) -> Kind:
        """Return the kind of step; the target writes by passes of one row, as it verifies."""
        return _verifying(level, 1) if level == self.levels - 1 else ("draft", level, 0)

    def row_cost(self, pair: Pair) -> float:
        """Return what one more token adds to a verification."""
        return self.costs.row(pair) * self.clock.factor(_verifying(pair[1], MOST // 4))

    def expected(self, team: Team, *, hoping: bool = False) -> list[float]:
        """Return tokens per unit of time that pass each stage of a team, each at its best fixed length.

        Args:
            team: that takes part.
            hoping: expect of what is little known what it may be at best.

        Returns:
            One figure for each pair of neighbours, the last for the target; the target's own for a team of one.
        """
        if len(team) == 1:
            return [1 / self.draft_cost(team[0])]
        paces: list[float] = []
        each = self.draft_cost(team[0])
        for pair in pairwise(team):
            if self.ngrams and pair[0] == 0:
                pace = self.gain[pair[1]].mean / self.draft_cost(pair[1])
            else:
                acceptance = self.acceptance[pair]
                pace = self._best_pace(pair, acceptance.hoped if hoping else acceptance.mean, each)
            paces.append(pace)
            each = 1 / pace
        return paces

    def fastest(self) -> Team:
        """Return the team of the highest throughput that may be hoped for."""
        return max(self.teams, key=lambda team: self.throughput[team].mean * self.expected(team, hoping=True)[-1])

    def fade(self, tokens: int) -> None:
        """Let so many committed tokens pass since all that was seen."""
        share = FADING**tokens
        for seen in (self.acceptance, self.throughput, self.gain):
            for figure in seen.values():
                figure.fade(share)

    def _best_pace(self, pair: Pair, mean: float, each: float) -> float:
        """Return the throughput at the best fixed number of drafted tokens.

        Of n tokens, each accepted with probability a, so many pass, the verifier's own included:
        (1 - a^n) / (1 - a), or with a bonus token (1 - a^(n+1)) / (1 - a)
        (Leviathan et al., arXiv 2211.17192, equation 1).
        """
        mean, bonus = bounded(mean), pair[1] in self.bonus
        return max(
            (1 - mean ** (count + bonus)) / (1 - mean) / (count * each + self.verify_cost(pair, count))
            for count in LENGTHS
        )


def _verifying(level: int, rows: int) -> Kind:
    return "verify", level, (rows - 1).bit_length()


def all_teams(levels: int) -> Iterator[Team]:
    """Yield every subset of levels that ends in the target."""
    *lower, target = range(levels)
    for size in range(levels):
        for chosen in combinations(lower, size):
            yield (*chosen, target)
