"""What the adaptive policy needs to know of a hierarchy, from costs and traces."""

from collections.abc import Callable, Sequence
from itertools import combinations

from hispec.calibration.fitting import fit, samples_of
from hispec.calibration.replay import Replay, readers_of
from hispec.calibration.traces import Reader, Trace
from hispec.decoding.adaptive import AdaptivePolicy
from hispec.decoding.hierarchy import Hierarchy
from hispec.decoding.knowledge import MOST, Knowledge, Pair, StepCosts, all_teams
from hispec.decoding.prediction import Predictor

CONTEXT = 256
"""The context length whose costs the policy takes for all."""


def step_costs(replay: Replay) -> StepCosts:
    """Milliseconds of drafting and judging with a hierarchy, what the policy's own features take included."""
    hierarchy, tables = replay.hierarchy, replay.tables(CONTEXT)
    levels = range(len(hierarchy))
    target = levels[-1]
    sure = replay.costs.confidence

    def spans(level: int, rows: int, above: int = -1) -> float:
        """Of a level and those below it on the same stack, down to `above`."""
        if level <= above:
            return 0.0
        below = hierarchy.below[level]
        return tables[level][0][rows] + (0.0 if below is None else spans(below, rows, above))

    def judged_by(pair: Pair, rows: int) -> float:
        lower, upper = pair
        seconds = spans(upper, rows, _nearest(hierarchy, lower, upper)) + tables[upper][1][rows]
        return seconds + replay.judging[upper] + (sure if upper < target else 0.0)

    draft = [
        replay.costs.guess
        if hierarchy.levels[level].stack is None
        else spans(level, 1) + tables[level][1][1] + replay.drafting[level] + (sure if level < target else 0.0)
        for level in levels
    ]
    return StepCosts(
        [1e3 * seconds for seconds in draft],
        {pair: [1e3 * judged_by(pair, rows) for rows in range(1, MOST + 1)] for pair in combinations(levels, 2)},
    )


def _nearest(hierarchy: Hierarchy, lower: int, upper: int) -> int:
    """The highest level of the upper one's stack, not above the lower one: its spans are done already."""
    stack = hierarchy.levels[upper].stack
    return max((level for level in range(lower + 1) if hierarchy.levels[level].stack is stack), default=-1)


class Fitter:
    """Fits predictors to traces, each pair of readers once.

    Args:
        texts: two of three to fit to, the third to choose by.
        features: that they may read.

    Attributes:
        unseen: the texts that nothing is fitted to.
    """

    def __init__(self, texts: Sequence[Trace], features: tuple[str, ...]) -> None:
        self.features = features
        self._own = [text for at, text in enumerate(texts) if at % 3]
        self.unseen = [text for at, text in enumerate(texts) if at % 3 == 0]
        self._known: dict[tuple[Reader, Reader], Predictor] = {}

    def predictors(self, hierarchy: Hierarchy) -> dict[Pair, Predictor]:
        """By pair of levels."""
        readers = readers_of(hierarchy)
        fitted: dict[Pair, Predictor] = {}
        for lower, upper in combinations(range(len(readers)), 2):
            if readers[lower].model:  # n-gram drafts are judged at once, predicted by nobody
                fitted[lower, upper] = self._fit(readers[lower], readers[upper])
        return fitted

    def _fit(self, lower: Reader, upper: Reader) -> Predictor:
        if (lower, upper) not in self._known:
            own, unseen = (samples_of(lower, upper, part) for part in (self._own, self.unseen))
            self._known[lower, upper], _ = fit(own, unseen or own, self.features)
        return self._known[lower, upper]


def knowledge_of(replay: Replay, fitter: Fitter, texts: Sequence[Trace]) -> Knowledge:
    """What the policy should know of a hierarchy, with the paces of its teams found by replay.

    Args:
        replay: of the hierarchy.
        fitter: of predictors.
        texts: to find the paces with.
    """
    hierarchy = replay.hierarchy
    costs, predictors = step_costs(replay), fitter.predictors(hierarchy)
    levels = len(hierarchy)
    bonus = [level for level in range(1, levels) if hierarchy.below[level] is None]
    paces = {
        team: replay.pace(texts, _maker(Knowledge(levels, costs, predictors, None, [team], bonus)))
        for team in all_teams(levels)
        if len(team) > 1
    }
    return Knowledge(levels, costs, predictors, paces, bonus=bonus)


def _maker(knowledge: Knowledge) -> Callable[[], AdaptivePolicy]:
    return lambda: AdaptivePolicy(knowledge)
