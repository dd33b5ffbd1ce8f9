"""The adaptive policy's section of a profile, and the performance model that is made of it.

Levels are named as `level_key` says, so that all modes of a profile find what concerns them.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from hispec.curve import Curve
from hispec.decoding.hierarchy import Hierarchy
from hispec.policies.performance_model import PerformanceModel
from hispec.policies.prediction import QUANTIZED, UNCALIBRATED, Logistic, Predictor, Table
from hispec.policies.step_costs import MAX_WAITING, Pair, StepCosts, all_active_levels
from hispec.profile import AcceptanceSection, AdaptiveSection
from hispec.step_timing import step_costs

VERIFIED_TOKENS = (1, 2, 4, 8, 16, MAX_WAITING)
"""The numbers of verified tokens whose costs are in a profile."""

ROW = 0.05
"""The cost of one more row of a layer, where it is not measured, as a share of the layer's."""

QUANTIZED_LAYER = 0.35
"""The cost of a layer of quantized weights, where it is not measured; a layer of full weights costs 1."""

NGRAM_COST = 0.1
"""The cost of an n-gram look-up, where it is not measured, in layers."""


def level_key(hierarchy: Hierarchy, level: int) -> str:
    """Return the name of a level in profiles.

    `2` is exit 2 of the target, `2:int4` that of its 4-bit copy, `org/name@20` an exit of another model, `2/1024` one
    with a head of 1,024 tokens.
    """
    one = hierarchy.levels[level]
    if one.stack is None:
        return "guesses"
    own = one.stack is hierarchy.target.stack
    head_size = "" if one.reduced is None else f"/{len(one.reduced.ids)}"
    if one.weights is not None:
        return f"{one.exit_layer}:{one.weights}{head_size}"
    return (str(one.exit_layer) if own else f"{one.stack.name}@{one.exit_layer}") + head_size


def levels_key(hierarchy: Hierarchy, levels: Iterable[int]) -> str:
    """Return levels in order: `1 > 2 > 16`."""
    return " > ".join(level_key(hierarchy, level) for level in levels)


def performance_model(
    hierarchy: Hierarchy, adaptation: AdaptiveSection | None, *, measured: bool = False, cached: bool = True
) -> PerformanceModel:
    """Return the performance model of a hierarchy at the start of decoding.

    Args:
        hierarchy: the levels.
        adaptation: the profile's section; values that it lacks are assumed.
        measured: measure costs that it does not hold, see `hispec.step_timing`; else they are assumed, too.
        cached: whether costs that were measured before will do.
    """
    found = adaptation or AdaptiveSection()
    pairs = list(combinations(range(len(hierarchy)), 2))
    predictors: dict[Pair, Predictor] = {
        pair: _predictor(found.acceptance.get(levels_key(hierarchy, pair)), _whole_copy(hierarchy, pair))
        for pair in pairs
        if hierarchy.levels[pair[0]].stack is not None
    }
    costs = _costs(hierarchy, found, pairs)
    model = found.tokens_per_ms if costs is not None else {}
    if costs is None and measured:
        costs = step_costs(hierarchy, [level_key(hierarchy, level) for level in range(len(hierarchy))], cached=cached)
    choices = {active: model.get(levels_key(hierarchy, active)) for active in all_active_levels(len(hierarchy))}
    return PerformanceModel(
        len(hierarchy),
        costs or uncalibrated_costs(hierarchy),
        predictors,
        {active: throughput for active, throughput in choices.items() if throughput is not None},
        bonus=[level for level in range(1, len(hierarchy)) if hierarchy.below[level] is None],
    )


def _whole_copy(hierarchy: Hierarchy, pair: Pair) -> bool:
    """Return whether a level is a copy of everything that the level that verifies it reads."""
    lower, upper = (hierarchy.levels[level] for level in pair)
    return lower.weights is not None and lower.exit_layer == upper.exit_layer


def adaptation_of(hierarchy: Hierarchy, model: PerformanceModel) -> AdaptiveSection:
    """Return a performance model's measurements as a section of a profile."""
    levels = range(len(hierarchy))
    return AdaptiveSection(
        draft_ms={level_key(hierarchy, level): _rounded(model.costs.draft[level]) for level in levels},
        verify_ms={
            levels_key(hierarchy, pair): [_rounded(costs[tokens - 1]) for tokens in VERIFIED_TOKENS]
            for pair, costs in model.costs.verify.items()
        },
        acceptance={
            levels_key(hierarchy, pair): acceptance_of(predictor)
            for pair, predictor in model.predictors.items()
            if hierarchy.levels[pair[0]].stack is not None
        },
        tokens_per_ms={
            levels_key(hierarchy, active): _rounded(throughput)
            for active, throughput in model.throughputs.items()
            if len(active) > 1
        },
    )


def acceptance_of(predictor: Predictor) -> AcceptanceSection:
    """Return a predictor as a profile holds it."""
    held: dict[str, Any] = {"features": [*predictor.features], "mean": predictor.mean}
    if isinstance(predictor, Table):
        held["table"] = [
            [knot, probability] for knot, probability in zip(predictor.knots, predictor.probabilities, strict=True)
        ]
    elif isinstance(predictor, Logistic):
        held["weights"] = [*predictor.weights]
    return AcceptanceSection.model_validate(held)


def uncalibrated_costs(hierarchy: Hierarchy) -> StepCosts:
    """Return assumed costs, in layers of full weights: a head and the loop cost as much as one layer each."""

    def share(level: int) -> float:
        return 1.0 if hierarchy.levels[level].weights is None else QUANTIZED_LAYER

    def scale(rows: int) -> float:
        return 1 + ROW * (rows - 1)

    def span(level: int, rows: int) -> float:
        layers = hierarchy.levels[level].exit_layer - hierarchy.first_layer(level)
        return layers * share(level) * scale(rows)

    return StepCosts.from_spans(
        hierarchy.below,
        span,
        lambda level, rows: share(level) * scale(rows) + 1,
        ngrams=None if hierarchy.ngrams is None else NGRAM_COST,
    )


def _costs(hierarchy: Hierarchy, found: AdaptiveSection, pairs: list[Pair]) -> StepCosts | None:
    """Return the profile's measured costs; None unless it has them for all levels, as others are not comparable."""
    draft = [found.draft_ms.get(level_key(hierarchy, level)) for level in range(len(hierarchy))]
    verify = {pair: found.verify_ms.get(levels_key(hierarchy, pair)) for pair in pairs}
    curves: Mapping[Pair, Curve] = {
        pair: Curve(VERIFIED_TOKENS, tuple(costs)) for pair, costs in verify.items() if costs is not None
    }
    model = [cost for cost in draft if cost is not None]
    if len(model) < len(draft) or len(curves) < len(pairs):
        return None
    return StepCosts(
        model, {pair: [curve(tokens) for tokens in range(1, MAX_WAITING + 1)] for pair, curve in curves.items()}
    )


def _predictor(acceptance: AcceptanceSection | None, whole_copy: bool) -> Predictor:
    if acceptance is None:
        return QUANTIZED if whole_copy else UNCALIBRATED
    features: tuple[str, ...] = tuple(acceptance.features)
    if acceptance.table is not None:
        knots, probabilities = zip(*acceptance.table, strict=True)
        return Table(knots, probabilities, acceptance.mean, features)
    assert acceptance.weights is not None
    return Logistic(tuple(acceptance.weights), acceptance.mean, features)


def _rounded(number: float) -> float:
    """Return a number with five significant digits: no measurement has more."""
    return float(f"{number:.5g}")
