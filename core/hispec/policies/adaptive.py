"""The adaptive policy: after every token it weighs the expected gain of one more against the time that it costs.

The active levels form a chain of stages: in each, a lower level drafts and the next one verifies. For each stage the
policy keeps

- the *survival* of the waiting tokens: the predicted probability that the next level accepts all of them, which is the
  product of their probabilities;
- the *throughput*: the tokens that passed this stage for each unit of time spent on it and the stages below it.

One more token counts only if all tokens that wait before it are accepted, and it is accepted itself: its expected gain
is survival x mean acceptance. It costs the time to bring it to this stage, 1 / throughput of the stage below, and a row
in the verification. If the stage's throughput is higher than gain / cost of this next token, the next level verifies
now. This is the rule of optimal stopping for a ratio of sums (Dinkelbach, *On nonlinear fractional programming*, 1967):
at the best achievable throughput, continue exactly while the marginal gain is worth its time.

When nothing waits, the policy also chooses the active levels: all, fewer, or the target alone, whichever has the
highest expected throughput (`hispec.policies.performance_model`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from hispec.policies.base import MIN_PROBABILITY, Draft, Policy, Step, Verify
from hispec.policies.confidence import Confidence
from hispec.policies.performance_model import TRIAL, PerformanceModel
from hispec.policies.prediction import probability_of
from hispec.policies.step_costs import MAX_WAITING, ActiveLevels, Pair

THROUGHPUT_DECAY = 0.97
"""The factor on the weight of earlier tokens and time at each verification: about the last thirty count."""

LEARNING_RATE = 0.15
"""The step size of the correction of predictions, in log-odds for each token that was wholly mispredicted."""

PRIOR_TOKENS = 40.0
"""The number of tokens that an expected throughput counts for when decoding begins."""

RESELECT_AFTER = 8
"""The number of committed tokens after which the active levels are chosen again."""

STOP_TRIAL_AFTER = 2
"""The number of committed tokens after which a trial ends if the levels on trial are slower than the target alone."""


class StageThroughput:
    """The throughput of a stage, of which recent verifications weigh more.

    Args:
        expected: the throughput before anything was observed.
    """

    def __init__(self, expected: float) -> None:
        self._tokens, self._time = PRIOR_TOKENS, PRIOR_TOKENS / expected
        self._running = 0.0

    @property
    def value(self) -> float:
        """Return tokens per unit of time."""
        return self._tokens / self._time

    def spend(self, time: float) -> None:
        """Add time that was spent on tokens that have not passed yet."""
        self._running += time

    def gain(self, tokens: int) -> None:
        """Add tokens that passed, for the time that was spent since the last ones."""
        self._tokens = THROUGHPUT_DECAY * self._tokens + tokens
        self._time = THROUGHPUT_DECAY * self._time + self._running
        self._running = 0.0


@dataclass(eq=False)
class Stage:
    """The tokens of one active level that wait for verification by the next.

    Attributes:
        pair: the two levels.
        throughput: the tokens that passed, divided by the time spent on this stage and those below.
        probabilities: the predicted probability of acceptance of each waiting token.
        drafted: the number of these tokens that were drafted rather than passed on by the stage below.
        survival: the product of the probabilities.
        min_survival: the survival below which one more token would gain less for its time than the stage does.
    """

    pair: Pair
    throughput: StageThroughput
    probabilities: list[float] = field(default_factory=list)
    drafted: int = 0
    survival: float = 1.0
    min_survival: float = 0.0

    def add(self, probability: float) -> bool:
        """Add a waiting token, and return whether another should follow."""
        self.probabilities.append(probability)
        self.survival *= probability
        return not self.is_full(len(self.probabilities))

    def is_full(self, tokens: int) -> bool:
        """Return whether the waiting tokens should be verified now."""
        return self.survival < self.min_survival or tokens >= MAX_WAITING

    def empty(self) -> None:
        """Remove the waiting tokens, which have been verified."""
        self.probabilities.clear()
        self.drafted, self.survival = 0, 1.0


class AdaptivePolicy(Policy):
    """Chooses steps by expected throughput, as the module describes; make one for each answer.

    Args:
        performance_model: shared with other answers; it learns from every step.
    """

    def __init__(self, performance_model: PerformanceModel) -> None:
        self.features = performance_model.features
        self._model = performance_model
        self._target = performance_model.levels - 1
        self._committed, self._spent = 0, 0.0
        """Tokens since the active levels were chosen; the cost of the steps since the last of them."""
        self._min_probability = MIN_PROBABILITY
        """The probability of acceptance below which a token of an n-gram draft is not worth its row."""
        self._verified: tuple[Pair, int, float] | None = None
        """The last verification: its pair of levels, its number of tokens, and its expected cost."""
        self._active: ActiveLevels = ()
        self._activate(performance_model.fastest_levels())

    @property
    def active(self) -> ActiveLevels:
        """Return the active levels."""
        return self._active

    @property
    def _drafts_ngrams(self) -> bool:
        """Return whether n-gram drafts are active."""
        return self._model.ngrams and self._active[0] == 0

    def next_step(self, verified: Sequence[int], may_draft: bool) -> Step:
        """Return the verification that is due by the stages' limits, else a draft by the lowest active level."""
        if verified[0] == verified[-1] and self._is_to_reselect():
            self._select_levels()
        waiting = [(stage, verified[stage.pair[0]] - verified[stage.pair[1]]) for stage in self._stages]
        for stage, tokens in waiting:
            if tokens and (stage.is_full(tokens) or not may_draft):
                return Verify(stage.pair[1])
            if tokens:
                break  # tokens of lower stages are verified before those of higher ones
        tokens = max(1, MAX_WAITING - waiting[0][1]) if waiting else 1
        return Draft(tokens, self._active[0], self._active[1] if waiting else None, self._min_probability)

    def on_draft(self, level: int, confidence: Confidence) -> bool:
        """Add the token to the stage of its level, and return whether that level should draft another."""
        stage = self._stage_of.get(level)
        if stage is None:
            return True
        stage.drafted += 1
        return stage.add(self._probability_of(stage.pair, confidence))

    def on_verification(
        self, level: int, proposed: int, accepted: int, passed: int, confidence: Sequence[Confidence]
    ) -> None:
        """Update acceptance, predictions and throughput by the tokens that a stage was verified for."""
        at = next((at for at, stage in enumerate(self._stages) if stage.pair[1] == level), None)
        if at is None:
            return
        stage, model = self._stages[at], self._model
        cost = model.verify_cost(stage.pair, proposed)
        self._verified = stage.pair, proposed, cost
        self._learn(stage, proposed, accepted)
        drafts = stage.drafted * model.draft_cost(stage.pair[0]) if stage.drafted else 0.0
        self._spend(drafts + cost, at)
        stage.throughput.gain(passed)
        stage.empty()
        if self._drafts_ngrams and at == 0:
            model.gain[level].update(passed, cost / model.draft_cost(level))
        if level == self._target:
            self._commit(passed)
        else:
            above = self._stages[at + 1]
            for features in confidence:
                above.add(self._probability_of(above.pair, features))
        self._set_limits()

    def on_timing(self, step: Step, seconds: float) -> None:
        """Correct the step costs by the time that a step took."""
        model = self._model
        if isinstance(step, Verify):
            if self._verified is not None:
                model.time_verification(*self._verified, seconds)
        elif not (model.ngrams and step.level == 0):
            cost = step.tokens * model.draft_cost(step.level)
            model.time_draft(step.level, step.tokens, seconds)
            if self._drafts_ngrams and step.level == self._active[1]:  # no n-gram was found
                model.gain[step.level].update(step.tokens, step.tokens)
            if step.level == self._target:
                self._spend(cost, 0)
                self._commit(step.tokens)

    def _probability_of(self, pair: Pair, confidence: Confidence) -> float:
        return probability_of(self._model.log_odds[pair](confidence) + self._model.shift[pair])

    def _set_limits(self) -> None:
        """Set the limits of each stage by the gain of one more token, survival x mean, and its cost."""
        model = self._model
        each = model.draft_cost(self._active[0])
        for stage in self._stages:
            throughput, row = stage.throughput.value, model.row_cost(stage.pair)
            stage.min_survival = throughput * (each + row) / model.acceptance[stage.pair].mean
            each = 1 / throughput
        if self._drafts_ngrams:
            first = self._stages[0]
            # N-gram drafts cost nothing but their rows.
            self._min_probability = first.throughput.value * model.row_cost(first.pair)
            first.min_survival = inf  # verified at once

    def _learn(self, stage: Stage, proposed: int, accepted: int) -> None:
        """Correct predictions by the outcome of the tokens, of which those after a rejected one have none."""
        model, known = self._model, min(proposed, accepted + 1)
        model.acceptance[stage.pair].update(accepted, known)
        for at, probability in enumerate(stage.probabilities[:known]):
            model.shift[stage.pair] += LEARNING_RATE * ((at < accepted) - probability)

    def _spend(self, cost: float, at: int) -> None:
        """Charge the cost of a step to its stage and those above it."""
        for stage in self._stages[at:]:
            stage.throughput.spend(cost)
        self._spent += cost

    def _commit(self, tokens: int) -> None:
        """Compare the number of committed tokens with that expected for the time."""
        self._model.relative[self._active].update(tokens, self._spent * self._expected)
        self._committed, self._spent = self._committed + tokens, 0.0

    def _is_to_reselect(self) -> bool:
        """Return whether to choose the active levels again."""
        if self._committed >= RESELECT_AFTER:
            return True
        on_trial = len(self._active) > 1 and self._tried <= TRIAL
        return on_trial and self._committed >= STOP_TRIAL_AFTER and self._model.is_slow(self._active)

    def _select_levels(self) -> None:
        """Activate the levels with the highest expected throughput."""
        model, before = self._model, self._active
        model.decay(self._committed, before)
        self._tried += self._committed
        chosen = model.fastest_levels()
        if self._tried > TRIAL:
            model.end_trial(before, failed=False)
        elif len(chosen) == 1 < len(before):
            model.end_trial(before, failed=True)
        self._activate(chosen)

    def _activate(self, active: ActiveLevels) -> None:
        """Activate some levels."""
        throughputs = self._model.expected(active)
        if active != self._active:
            self._active, self._tried = active, 0
            self._stages = [
                Stage(pair, StageThroughput(throughput))
                for pair, throughput in zip(pairwise(active), throughputs, strict=False)
            ]
            self._stage_of = {stage.pair[0]: stage for stage in self._stages}
        self._expected, self._committed = throughputs[-1], 0
        self._set_limits()
