"""The state of the calibration screen, as a pure function of the calibration's progress.

`reduce(state, *seen)` is the next state; nothing here reads a clock, a terminal or a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from math import isfinite
from typing import NamedTuple

from hispec.calibration.recording import LevelSpec
from hispec.calibration.run import ENDS, PHASES, Phase, Progress, Replayed, Timed
from hispec.calibration.search import PLAIN, Configuration, Score, SearchSpace
from hispec.calibration.timing import Speed, Timings

ADAPTIVE = 0
"""Stands for the adaptive policy where else there is a period."""
NEAR = 0.97
"""The share of the highest throughput above which replay counts configurations as equally fast."""


class DraftExit(NamedTuple):
    """A drafter: an exit of a model or of a quantized copy of it, with any head."""

    model: str
    exit_layer: int
    weights: str = ""

    @classmethod
    def of(cls, spec: LevelSpec) -> "DraftExit":
        """Return a level spec with its whole head."""
        return cls(spec.model, spec.exit_layer, spec.weights)


class CellKey(NamedTuple):
    """A cell of the heat map: who drafts, and at how many tokens the target verifies."""

    drafter: DraftExit
    period: int


class TimedProgress(NamedTuple):
    """A progress event and its time: seconds since the start."""

    at: float
    progress: Progress


class CandidateStatus(StrEnum):
    """The state of a cell or a finalist."""

    pending = "pending"
    """Nothing is known yet."""
    scored = "scored"
    """Still in the race."""
    pruned = "pruned"
    """Left behind."""
    tied = "tied"
    """May be as fast as the best."""
    best = "best"


@dataclass(frozen=True)
class Finalist:
    """A configuration that is timed.

    Attributes:
        configuration: the configuration.
        predicted: tokens per second by replay.
        speed: the timed speed, None as long as it has no answer.
        answers: the number of answers.
        prompts: the number of different prompts that were answered.
        status: among the finalists.
    """

    configuration: Configuration
    predicted: float | None
    speed: Speed | None
    answers: int
    prompts: int
    status: CandidateStatus


@dataclass(frozen=True)
class CalibrationState:
    """One moment of a calibration.

    Attributes:
        drafters: rows of the heat map.
        periods: its columns, `ADAPTIVE` the last where that is tried.
        budget: seconds.
        phase: the phase that is under way, empty before the first.
        share: the share of it that is done, as far as it reports it.
        began: seconds since the start, by phase.
        ended: the same.
        scored: the number of replays.
        scores: the last of each configuration.
        cells: by position, the fastest configuration of those replayed on the most texts.
        rounds: the numbers of texts that replays took, ascending.
        timings: the timings of the finalists.
        alive: the indices of those that have not been dropped.
        check: the timings on unseen prompts.
        winner: once it is known.
    """

    drafters: tuple[DraftExit, ...]
    periods: tuple[int, ...]
    budget: float
    phase: str = ""
    share: float = 0.0
    began: Mapping[str, float] = field(default_factory=dict)
    ended: Mapping[str, float] = field(default_factory=dict)
    scored: int = 0
    scores: Mapping[Configuration, Score] = field(default_factory=dict)
    cells: Mapping[CellKey, Score] = field(default_factory=dict)
    rounds: tuple[int, ...] = ()
    timings: Timings | None = None
    alive: tuple[int, ...] = ()
    check: Timings | None = None
    winner: Configuration | None = None

    @cached_property
    def best(self) -> Score | None:
        """Return the fastest of those replayed on the most texts, plain decoding among them."""
        known = [*self.cells.values(), *([self.scores[PLAIN]] if PLAIN in self.scores else [])]
        return max(known, key=_rank, default=None)

    @property
    def replayed(self) -> bool:
        """Return whether the search by replay is over."""
        return "replay" in self.ended

    def progress_of(self, phase: str, at: float) -> float:
        """Return the share of a phase that is over, by what it says or by the time that it may take, while that lasts."""
        if phase in self.ended:
            return 1.0
        if phase not in self.began:
            return 0.0
        start = min(self.began.values())
        began, end = self.began[phase], start + ENDS[phase] * (self.budget - start)
        by_time = (at - began) / (end - began) if end > began else 1.0
        return max(self.share, min(0.99, by_time)) if by_time < 1 else self.share

    @cached_property
    def finalists(self) -> list[Finalist]:
        """Return the configurations that are timed, the fastest first, dropped ones last."""
        if self.timings is None:
            return []
        return figures_of(self.timings, self.alive, self.scores, self.winner)

    @cached_property
    def checked(self) -> list[Finalist]:
        """Return winner and baselines on prompts not seen before."""
        if self.check is None:
            return []
        return figures_of(self.check, range(len(self.check.configurations)), self.scores)

    def status(self, place: CellKey) -> CandidateStatus:
        """Return the status of a cell: by timing as soon as there is some, else by replay."""
        score, best = self.cells.get(place), self.best
        if score is None or best is None:
            return CandidateStatus.pending
        timed = [one for one in self.finalists if one.speed is not None]
        if timed:
            found = {one.status for one in timed if cell_of(one.configuration) == place}
            ranked = (CandidateStatus.best, CandidateStatus.tied, CandidateStatus.scored)
            return next((each for each in ranked if each in found), CandidateStatus.pruned)
        if score is best:
            return CandidateStatus.best
        if score.texts < self.rounds[-1 if self.replayed else max(-2, -len(self.rounds))]:
            return CandidateStatus.pruned
        near = score.texts == best.texts and score.speed >= NEAR * best.speed
        return CandidateStatus.tied if near else CandidateStatus.scored


def figures_of(
    timings: Timings,
    alive: Sequence[int],
    scores: Mapping[Configuration, Score],
    winner: Configuration | None = None,
) -> list[Finalist]:
    """Return the timed configurations by state, the fastest first.

    Args:
        timings: answers so far.
        alive: places of the configurations that are not dropped.
        scores: their replays.
        winner: the best one, where it is known; else the fastest of those alive is. Dropped ones may have had easier
            prompts.
    """
    asked: dict[int, set[tuple[int, int]]] = {}
    for answer in timings.answers:
        asked.setdefault(answer.configuration, set()).add((answer.prompt, answer.repeat))
    speeds = {one: timings.speed(one) for one in asked}
    best = max((one for one in alive if one in speeds), key=lambda one: speeds[one].value, default=None)
    if winner in timings.configurations:
        best = timings.configurations.index(winner)

    def status(one: int) -> CandidateStatus:
        if one not in speeds or best is None:
            return CandidateStatus.pending
        if one == best or one not in alive:
            return CandidateStatus.best if one == best else CandidateStatus.pruned
        shared = asked[one] & asked[best]
        return CandidateStatus.tied if shared and timings.may_be_as_fast(one, best) else CandidateStatus.scored

    found = [
        Finalist(
            configuration,
            scores[configuration].speed if configuration in scores else None,
            speeds.get(one),
            len(asked.get(one, ())),
            len({prompt for prompt, _ in asked.get(one, ())}),
            status(one),
        )
        for one, configuration in enumerate(timings.configurations)
    ]
    order = [
        CandidateStatus.best,
        CandidateStatus.tied,
        CandidateStatus.scored,
        CandidateStatus.pending,
        CandidateStatus.pruned,
    ]
    return sorted(found, key=lambda one: (order.index(one.status), -(one.speed.value if one.speed else 0.0)))


def initial(space: SearchSpace, budget: float) -> CalibrationState:
    """Return the state before any progress."""
    drafters = [DraftExit.of(spec) for spec in space.specs]
    periods = tuple(sorted(space.validate_every)) + ((ADAPTIVE,) if space.adaptive else ())
    return CalibrationState(tuple(drafters), periods, budget)


def cell_of(configuration: Configuration) -> CellKey | None:
    """Return the cell of a configuration; None for plain decoding and for n-grams alone."""
    if not configuration.specs:
        return None
    period = configuration.periods[-1] if configuration.periods else ADAPTIVE
    return CellKey(DraftExit.of(configuration.specs[0]), period)


def reduce(state: CalibrationState, *seen: TimedProgress) -> CalibrationState:
    """Return the state after more progress; one call with several events gives the same result as one call each,
    faster.
    """
    scores, cells, rounds = dict(state.scores), dict(state.cells), set(state.rounds)
    began, ended = dict(state.began), dict(state.ended)
    phase, share, scored = state.phase, state.share, state.scored
    timed: dict[str, Timings] = {}
    alive = state.alive
    for at, progress in seen:
        match progress:
            case Phase(name, part):
                for earlier in PHASES[: PHASES.index(name)]:
                    if earlier in began:
                        ended.setdefault(earlier, at)
                began.setdefault(name, at)
                phase, share = name, part
                if part >= 1:
                    ended.setdefault(name, at)
            case Replayed(score):
                scored += 1
                scores[score.configuration] = score
                rounds.add(score.texts)
                place = cell_of(score.configuration)
                if place is not None and (place not in cells or _rank(score) >= _rank(cells[place])):
                    cells[place] = score
            case Timed(timings, left):
                timed[phase] = timings
                if phase == "timing":
                    alive = tuple(left)
    state = replace(
        state,
        phase=phase,
        share=share,
        began=began,
        ended=ended,
        scored=scored,
        scores=scores,
        cells=cells,
        rounds=tuple(sorted(rounds)),
        alive=alive,
    )
    copies = {name: Timings(one.configurations, list(one.answers)) for name, one in timed.items()}
    return replace(state, timings=copies.get("timing", state.timings), check=copies.get("check", state.check))


def _rank(score: Score) -> tuple[int, float]:
    """Return the rank of a cell: replays on more texts come first, then higher speeds."""
    return score.texts, score.speed if isfinite(score.speed) else 0.0
