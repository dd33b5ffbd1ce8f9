"""Derives the adaptive policy's knowledge of a hierarchy from costs and recorded texts."""

from collections.abc import Callable, Sequence
from itertools import combinations

from hispec.calibration.fitting import fit, samples_of
from hispec.calibration.recording import LevelSpec, RecordedText
from hispec.calibration.replay import Replay, specs_of
from hispec.decoding.hierarchy import Hierarchy
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.performance_model import PerformanceModel
from hispec.policies.prediction import Predictor
from hispec.policies.step_costs import Pair, StepCosts, all_active_levels

CONTEXT = 256
"""The context length whose costs the policy uses for all lengths."""


def replay_step_costs(replay: Replay) -> StepCosts:
    """Return the milliseconds of steps of a hierarchy, those of the policy's own features included."""
    hierarchy, tables, costs = replay.hierarchy, replay.tables(CONTEXT), replay.costs
    target = len(hierarchy) - 1

    def confidence(level: int) -> float:
        return costs.confidence if level < target else 0.0

    return StepCosts.from_spans(
        hierarchy.below,
        lambda level, rows: tables[level][0][rows],
        lambda level, rows: tables[level][1][rows],
        ngrams=None if hierarchy.ngrams is None else costs.ngram_lookup,
        draft_overhead=lambda level: replay.drafting[level] + confidence(level),
        verify_overhead=lambda level: replay.verifying[level] + confidence(level),
    ).scaled(1e3)


class Fitter:
    """Fits predictors to recorded texts, once for each pair of level specs.

    Args:
        texts: recorded texts; predictors are fitted to two of every three, and chosen by the third.
        features: the features that predictors may read.

    Attributes:
        unseen: the texts that no predictor is fitted to.
    """

    def __init__(self, texts: Sequence[RecordedText], features: tuple[str, ...]) -> None:
        self.features = features
        self._own = [text for at, text in enumerate(texts) if at % 3]
        self.unseen = [text for at, text in enumerate(texts) if at % 3 == 0]
        self._known: dict[tuple[LevelSpec, LevelSpec], Predictor] = {}

    def predictors(self, hierarchy: Hierarchy) -> dict[Pair, Predictor]:
        """Return the predictors of acceptance, by pair of levels."""
        specs = specs_of(hierarchy)
        fitted: dict[Pair, Predictor] = {}
        for lower, upper in combinations(range(len(specs)), 2):
            if specs[lower].model:  # n-gram drafts are verified at once, without a prediction
                fitted[lower, upper] = self._fit(specs[lower], specs[upper])
        return fitted

    def _fit(self, lower: LevelSpec, upper: LevelSpec) -> Predictor:
        if (lower, upper) not in self._known:
            own, unseen = (samples_of(lower, upper, part) for part in (self._own, self.unseen))
            self._known[lower, upper], _ = fit(own, unseen or own, self.features)
        return self._known[lower, upper]


def performance_model_of(replay: Replay, fitter: Fitter, texts: Sequence[RecordedText]) -> PerformanceModel:
    """Return the performance model of a hierarchy, with the throughput of its active levels found by replay.

    Args:
        replay: a replay of the hierarchy.
        fitter: the fitter of predictors.
        texts: the texts to replay.
    """
    hierarchy = replay.hierarchy
    costs, predictors = replay_step_costs(replay), fitter.predictors(hierarchy)
    levels = len(hierarchy)
    bonus = [level for level in range(1, levels) if hierarchy.below[level] is None]
    throughputs = {
        active: replay.throughput(texts, _maker(PerformanceModel(levels, costs, predictors, None, [active], bonus)))
        for active in all_active_levels(levels)
        if len(active) > 1
    }
    return PerformanceModel(levels, costs, predictors, throughputs, bonus=bonus)


def _maker(performance_model: PerformanceModel) -> Callable[[], AdaptivePolicy]:
    return lambda: AdaptivePolicy(performance_model)
