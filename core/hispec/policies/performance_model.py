"""The performance model: what steps cost, how many tokens are accepted, and the throughput that follows.

It begins with the results of a calibration, or of a measurement at loading, and learns from every step.
Older observations count less, so that it follows a text that changes its character, and so that levels that once did
badly are tried again. Where little was observed, estimates are optimistic: see `Acceptance.optimistic`.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from hispec.policies.estimates import Acceptance, CostCorrection, RelativeThroughput, StepKind
from hispec.policies.prediction import Logistic, Predictor, clamped, log_odds_from
from hispec.policies.step_costs import MAX_WAITING, ActiveLevels, Pair, StepCosts, all_active_levels

DRAFT_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, MAX_WAITING)
"""Numbers of draft tokens that are compared with each other."""

DECAY, DECAY_INACTIVE = 0.995, 0.998
"""The factor on the weight of observations for every token that the target commits: half of it is left after 140, and of
those of levels that were not active, after 350."""

TRIAL = 32
"""The number of committed tokens up to which active levels are on trial. They fail if the target alone replaces them by
then.
"""

SLOWER = 2
"""The factor by which a failed trial slows the decay of what is known of levels while the target writes alone, and so puts
off the next trial. A larger one finds out late that a text has changed its character.
"""

PRIOR_NGRAM_GAIN = 1.05
"""The factor on the throughput of the verifying level that n-gram drafts are expected to give, before any was seen."""

UNPREDICTED = Logistic((0.0, 0.0, 0.0), 0.5, ("margin",))
"""Stands for the predictor of n-gram drafts, which are verified at once, without a prediction."""


class PerformanceModel:
    """Predicts the throughput of a hierarchy; shared by all answers of a session, each of which adds observations.

    Args:
        levels: the number of levels.
        costs: the costs of steps.
        predictors: the predictor of acceptance of each pair. A pair without one is a level of n-grams, whose drafts are
            verified at once, and the level that verifies them.
        throughputs: the expected tokens per unit of time by active levels; missing ones follow from mean acceptance.
        choices: the active levels to choose from; all by default.
        bonus: levels whose verification of n tokens yields up to n + 1.

    Attributes:
        features: the features that the predictors read.
        acceptance: the observed acceptance, by pair.
        shift: the correction of each pair's predictor, in log-odds.
        correction: the observed correction of step costs.
        relative: the observed throughput relative to the expected one, by active levels.
        gain: the throughput with n-gram drafts relative to that without, by the level that verifies them.
        failed: the active levels whose last trial failed.
    """

    def __init__(
        self,
        levels: int,
        costs: StepCosts,
        predictors: Mapping[Pair, Predictor],
        throughputs: Mapping[ActiveLevels, float] | None = None,
        choices: Sequence[ActiveLevels] = (),
        bonus: Sequence[int] = (),
    ) -> None:
        self.levels, self.costs, self.bonus = levels, costs, frozenset(bonus)
        self.ngrams = not costs.verify.keys() <= predictors.keys()
        """Whether the lowest level is an n-gram look-up."""
        predictors = {pair: predictors.get(pair, UNPREDICTED) for pair in costs.verify}
        self.predictors = predictors
        self.features = tuple(dict.fromkeys(name for p in predictors.values() for name in p.features)) or ("margin",)
        self.log_odds = {pair: log_odds_from(predictor, self.features) for pair, predictor in predictors.items()}
        self.acceptance = {pair: Acceptance(p.mean, p.weight) for pair, p in predictors.items()}
        self.shift = dict.fromkeys(predictors, 0.0)
        self.correction = CostCorrection()
        self.gain = {level: RelativeThroughput(PRIOR_NGRAM_GAIN) for level in range(levels)}
        self.choices = tuple(choices) or tuple(all_active_levels(levels))
        self.relative = {active: RelativeThroughput() for active in self.choices}
        self.failed: set[ActiveLevels] = set()
        self.throughputs = {active: self.expected(active)[-1] for active in self.choices}
        """The throughput that is expected before anything was observed, by active levels."""
        self._failed_parts: set[Pair | int] = set()
        """The pairs and levels of active levels that failed, and of no others."""
        for active, throughput in (throughputs or {}).items():
            if active in self.relative:
                self.relative[active] = RelativeThroughput(throughput / self.throughputs[active])
                self.throughputs[active] = throughput

    def draft_cost(self, level: int) -> float:
        """Return the cost of drafting one token with a level."""
        return self.costs.draft[level] * self.correction.factor(self._draft_kind(level))

    def verify_cost(self, pair: Pair, tokens: int) -> float:
        """Return the cost of verifying some tokens, the bonus token's row included."""
        rows = tokens + (pair[1] in self.bonus)
        return self.costs.verification(pair, rows) * self.correction.factor(_verify_kind(pair[1], rows))

    def time_draft(self, level: int, tokens: int, seconds: float) -> None:
        """Learn how long drafting took."""
        expected = tokens * self.draft_cost(level)
        self.correction.update(self._draft_kind(level), expected, seconds, target=level == self.levels - 1)

    def time_verification(self, pair: Pair, tokens: int, expected: float, seconds: float) -> None:
        """Learn how long a verification took whose cost was expected to be `expected`."""
        kind = _verify_kind(pair[1], tokens + (pair[1] in self.bonus))
        self.correction.update(kind, expected, seconds, target=pair[1] == self.levels - 1)

    def _draft_kind(self, level: int) -> StepKind:
        """Return the kind of a draft; the target drafts by the same pass of one row by which it verifies."""
        return _verify_kind(level, 1) if level == self.levels - 1 else ("draft", level, 0)

    def row_cost(self, pair: Pair) -> float:
        """Return the additional cost of one more token in a verification."""
        return self.costs.row(pair) * self.correction.factor(_verify_kind(pair[1], MAX_WAITING // 4))

    def expected(self, active: ActiveLevels, *, optimistic: bool = False) -> list[float]:
        """Return the tokens per unit of time that pass each stage of some active levels, each at its best fixed length.

        Args:
            active: the active levels.
            optimistic: whether to take optimistic estimates of acceptance.

        Returns:
            One figure for each pair of neighbours, the last for the target; for the target alone, its throughput.
        """
        if len(active) == 1:
            return [1 / self.draft_cost(active[0])]
        throughputs: list[float] = []
        each = self.draft_cost(active[0])
        for pair in pairwise(active):
            if self.ngrams and pair[0] == 0:
                throughput = self.gain[pair[1]].mean / self.draft_cost(pair[1])
            else:
                acceptance = self.acceptance[pair]
                throughput = self._best_throughput(pair, acceptance.optimistic if optimistic else acceptance.mean, each)
            throughputs.append(throughput)
            each = 1 / throughput
        return throughputs

    def fastest_levels(self) -> ActiveLevels:
        """Return the active levels with the highest throughput, by optimistic estimates."""
        return max(self.choices, key=self._optimistic_throughput)

    def _optimistic_throughput(self, active: ActiveLevels) -> float:
        """Return the throughput that observations so far let expect of active levels, by optimistic estimates."""
        return self.relative[active].mean * self.expected(active, optimistic=True)[-1]

    def decay(self, tokens: int, active: ActiveLevels) -> None:
        """Let observations decay by a number of committed tokens.

        Args:
            tokens: the number of committed tokens.
            active: the active levels. Observations of others decay slowly, since trying them again costs time; where
                the target writes alone, those of levels that failed decay even more slowly.
        """
        observed: set[object] = {active, *_parts(active)}
        alone = len(active) == 1
        parts = self._failed_parts
        for estimates, failed in ((self.acceptance, parts), (self.relative, self.failed), (self.gain, parts)):
            for key, estimate in estimates.items():
                inactive = DECAY_INACTIVE ** (tokens / SLOWER if alone and key in failed else tokens)
                estimate.decay(DECAY**tokens if key in observed else inactive)

    def end_trial(self, active: ActiveLevels, *, failed: bool) -> None:
        """Learn whether a trial of active levels failed: see `TRIAL`."""
        if failed == (active in self.failed):
            return
        self.failed ^= {active}
        others = [choice for choice in self.choices if len(choice) > 1 and choice not in self.failed]
        left = {part for choice in others for part in _parts(choice)}
        self._failed_parts = {part for choice in self.failed for part in _parts(choice)} - left

    def is_slow(self, active: ActiveLevels) -> bool:
        """Return whether active levels are slower than the target alone, by an optimistic estimate; False where that is no
        choice.
        """
        alone = (self.levels - 1,)
        return alone in self.relative and self._optimistic_throughput(active) < self._optimistic_throughput(alone)

    def _best_throughput(self, pair: Pair, mean: float, each: float) -> float:
        """Return the throughput of a stage at the best fixed number of draft tokens.

        Of n tokens, each accepted with probability a, (1 - a^n) / (1 - a) pass, the verifying level's own token
        included; with a bonus token, (1 - a^(n+1)) / (1 - a) pass (Leviathan et al., arXiv 2211.17192, equation 1).
        """
        mean, bonus = clamped(mean), pair[1] in self.bonus
        return max(
            (1 - mean ** (count + bonus)) / (1 - mean) / (count * each + self.verify_cost(pair, count))
            for count in DRAFT_LENGTHS
        )


def _parts(active: ActiveLevels) -> set[Pair | int]:
    """Return the pairs and levels that decoding with active levels observes."""
    return {*pairwise(active), *active}


def _verify_kind(level: int, rows: int) -> StepKind:
    return "verify", level, (rows - 1).bit_length()
