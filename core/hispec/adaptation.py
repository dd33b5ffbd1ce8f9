"""What a profile holds for the adaptive policy, and the policy's knowledge of a hierarchy made of it.

Levels are named as `level_key` says, so that all modes of a profile find what concerns them.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from hispec.curve import Curve
from hispec.decoding.hierarchy import Hierarchy
from hispec.decoding.knowledge import MOST, Knowledge, Pair, StepCosts, all_teams
from hispec.decoding.prediction import QUANTIZED, UNCALIBRATED, Logistic, Predictor, Table
from hispec.profile import Acceptance, Adaptation
from hispec.step_timing import step_costs

JUDGED = (1, 2, 4, 8, 16, MOST)
"""Numbers of judged tokens whose costs a profile holds."""

ROW = 0.05
"""Unmeasured: what one more row adds to the cost of a layer."""

QUANTIZED_LAYER = 0.35
"""Unmeasured: what a layer of quantized weights costs, one of full weights being 1."""


def level_key(hierarchy: Hierarchy, level: int) -> str:
    """Return a level's name in profiles.

    `2` is exit 2 of the target, `2:int4` that of its 4-bit copy, `org/name@20` an exit of another model, `2/1024` one
    with a head of 1,024 words.
    """
    one = hierarchy.levels[level]
    if one.stack is None:
        return "guesses"
    own = one.stack is hierarchy.target.stack
    words = "" if one.reduced is None else f"/{len(one.reduced.ids)}"
    if one.weights is not None:
        return f"{one.exit_layer}:{one.weights}{words}"
    return (str(one.exit_layer) if own else f"{one.stack.name}@{one.exit_layer}") + words


def team_key(hierarchy: Hierarchy, levels: Iterable[int]) -> str:
    """Return levels in order: `1 > 2 > 16`."""
    return " > ".join(level_key(hierarchy, level) for level in levels)


def knowledge(hierarchy: Hierarchy, adaptation: Adaptation | None, *, measured: bool = False) -> Knowledge:
    """Return what the policy knows of a hierarchy when decoding begins.

    Args:
        hierarchy: the levels.
        adaptation: what the profile holds; what is not there is assumed.
        measured: measure costs that it does not hold, see `hispec.step_timing`; else they are assumed, too.
    """
    found = adaptation or Adaptation()
    pairs = list(combinations(range(len(hierarchy)), 2))
    predictors: dict[Pair, Predictor] = {
        pair: _predictor(found.acceptance.get(team_key(hierarchy, pair)), _whole_copy(hierarchy, pair))
        for pair in pairs
        if hierarchy.levels[pair[0]].stack is not None
    }
    costs = _costs(hierarchy, found, pairs)
    known = found.tokens_per_ms if costs is not None else {}
    if costs is None and measured:
        costs = step_costs(hierarchy, [level_key(hierarchy, level) for level in range(len(hierarchy))])
    teams = {team: known.get(team_key(hierarchy, team)) for team in all_teams(len(hierarchy))}
    return Knowledge(
        len(hierarchy),
        costs or uncalibrated_costs(hierarchy),
        predictors,
        {team: pace for team, pace in teams.items() if pace is not None},
        bonus=[level for level in range(1, len(hierarchy)) if hierarchy.below[level] is None],
    )


def _whole_copy(hierarchy: Hierarchy, pair: Pair) -> bool:
    """Return whether a level's tokens are those of a copy of all that the level that verifies them reads."""
    lower, upper = (hierarchy.levels[level] for level in pair)
    return lower.weights is not None and lower.exit_layer == upper.exit_layer


def adaptation_of(hierarchy: Hierarchy, known: Knowledge) -> Adaptation:
    """What a profile should hold of a policy's knowledge."""
    levels = range(len(hierarchy))
    return Adaptation(
        draft_ms={level_key(hierarchy, level): _rounded(known.costs.draft[level]) for level in levels},
        judge_ms={
            team_key(hierarchy, pair): [_rounded(costs[tokens - 1]) for tokens in JUDGED]
            for pair, costs in known.costs.judge.items()
        },
        acceptance={
            team_key(hierarchy, pair): acceptance_of(predictor)
            for pair, predictor in known.predictors.items()
            if hierarchy.levels[pair[0]].stack is not None
        },
        tokens_per_ms={
            team_key(hierarchy, team): _rounded(pace) for team, pace in known.paces.items() if len(team) > 1
        },
    )


def acceptance_of(predictor: Predictor) -> Acceptance:
    """A predictor as a profile holds it."""
    held: dict[str, Any] = {"features": [*predictor.features], "mean": predictor.mean}
    if isinstance(predictor, Table):
        held["table"] = [[knot, chance] for knot, chance in zip(predictor.knots, predictor.chances, strict=True)]
    elif isinstance(predictor, Logistic):
        held["weights"] = [*predictor.weights]
    return Acceptance.model_validate(held)


def uncalibrated_costs(hierarchy: Hierarchy) -> StepCosts:
    """Return costs in layers of full weights, where none were measured: a head and the loop cost as one layer each."""
    levels = range(len(hierarchy))

    def share(level: int) -> float:
        return 1.0 if hierarchy.levels[level].weights is None else QUANTIZED_LAYER

    def layers(level: int, above: int = -1) -> float:
        if level <= above:
            return 0
        below = hierarchy.below[level]
        own = (hierarchy.levels[level].exit_layer - hierarchy.first_layer(level)) * share(level)
        return own + (0 if below is None else layers(below, above))

    def judged(pair: Pair, tokens: int) -> float:
        lower, upper = pair
        return (layers(upper, lower) + share(upper)) * (1 + ROW * (tokens - 1)) + 1

    draft = [0.1 if hierarchy.levels[level].stack is None else layers(level) + share(level) + 1 for level in levels]
    return StepCosts(
        draft, {pair: [judged(pair, tokens) for tokens in range(1, MOST + 1)] for pair in combinations(levels, 2)}
    )


def _costs(hierarchy: Hierarchy, found: Adaptation, pairs: list[Pair]) -> StepCosts | None:
    """Measured costs, where the profile has them for all levels: costs of two kinds do not compare."""
    draft = [found.draft_ms.get(level_key(hierarchy, level)) for level in range(len(hierarchy))]
    judge = {pair: found.judge_ms.get(team_key(hierarchy, pair)) for pair in pairs}
    curves: Mapping[Pair, Curve] = {
        pair: Curve(JUDGED, tuple(costs)) for pair, costs in judge.items() if costs is not None
    }
    known = [cost for cost in draft if cost is not None]
    if len(known) < len(draft) or len(curves) < len(pairs):
        return None
    return StepCosts(known, {pair: [curve(tokens) for tokens in range(1, MOST + 1)] for pair, curve in curves.items()})


def _predictor(acceptance: Acceptance | None, whole_copy: bool) -> Predictor:
    if acceptance is None:
        return QUANTIZED if whole_copy else UNCALIBRATED
    features: tuple[str, ...] = tuple(acceptance.features)
    if acceptance.table is not None:
        knots, chances = zip(*acceptance.table, strict=True)
        return Table(knots, chances, acceptance.mean, features)
    assert acceptance.weights is not None
    return Logistic(tuple(acceptance.weights), acceptance.mean, features)


def _rounded(number: float) -> float:
    """To five significant digits: nobody measures better."""
    return float(f"{number:.5g}")
