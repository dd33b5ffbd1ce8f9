"""The page of a calibration."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hispec.calibration.result import CalibrationResult
from hispec.calibration.run import PHASES, CalibrationJob
from hispec.calibration.timing import Speed
from hispec.calibration.writing import advice, verdict
from hispec.counts import counted
from hispec_cli.ui.calibration_panels import UNICODE, heat, row_name
from hispec_cli.ui.calibration_state import ADAPTIVE, CalibrationState, CandidateStatus, CellKey
from hispec_cli.ui.calibration_view import role, searched
from hispec_cli.ui.report.calibration_charts import draw_calibration
from hispec_cli.ui.report.files import write_text
from hispec_cli.ui.report.html import flat, render

MEANINGS = {
    CandidateStatus.best: "the fastest",
    CandidateStatus.tied: "may be as fast",
    CandidateStatus.scored: "slower",
    CandidateStatus.pruned: "left behind",
    CandidateStatus.pending: "not replayed",
}


@dataclass(frozen=True)
class Cell:
    """A cell of the map.

    Attributes:
        status: the state of the finalist.
        mark: its sign.
        heat: step of the colours, None where nothing is known.
        figure: per cent of the fastest.
        said: a full description.
    """

    status: CandidateStatus
    mark: str
    heat: int | None
    figure: str
    said: str


@dataclass(frozen=True)
class ResultRow:
    """Winner or baseline, on unseen prompts."""

    role: str
    what: str
    won: bool
    speed: Speed
    ratio: Speed
    predicted: float | None


def write_calibration_report(
    path: Path, job: CalibrationJob, result: CalibrationResult, environment: Mapping[str, Any], command: Sequence[str]
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the path of the page.
        job: the calibration's job.
        result: the result of the calibration.
        environment: the conditions of the figures.
        command: the command that repeats the run.

    Raises:
        UnavailableError: writing fails.
    """
    write_text(path, to_html(job, result, environment, command))


def to_html(
    job: CalibrationJob, result: CalibrationResult, environment: Mapping[str, Any], command: Sequence[str]
) -> str:
    """Return the page; arguments as `write_calibration_report`."""
    state = searched(job, result)
    finalists = state.finalists
    return render(
        "calibration.html.jinja",
        draw_calibration(result, finalists),
        target=job.target,
        verdict=verdict(result),
        advice=advice(result),
        winner=result.winner.describe(job.target),
        ties=[tie.describe(job.target) for tie in result.ties],
        columns=["adaptive" if period == ADAPTIVE else str(period) for period in state.periods],
        map=[
            (
                row_name([drafter], job.target, UNICODE),
                [_cell(state, CellKey(drafter, p), job.target) for p in state.periods],
            )
            for drafter in state.drafters
        ],
        marks=[(UNICODE.mark(status), meaning) for status, meaning in MEANINGS.items() if UNICODE.mark(status).strip()],
        fastest=state.best.speed if state.best else None,
        rows=_rows(job, result),
        unseen=result.prompts_checked,
        finalists=[(one, UNICODE.mark(one.status), one.configuration.describe(job.target)) for one in finalists],
        replays=result.scorer.scored,
        configurations=len(result.found.scores),
        texts=len(result.scorer.recorded.texts),
        seconds=[(phase, result.seconds.get(phase)) for phase in PHASES],
        budget=job.budget.seconds,
        environment=list(flat(dict(environment))),
        command=shlex.join(command),
    )


def _rows(job: CalibrationJob, result: CalibrationResult) -> list[ResultRow]:
    predicted = {score.configuration: score.speed for score in result.found.scores}
    return [
        ResultRow(
            role(result, one).replace("\n", " "),
            one.describe(job.target),
            one == result.winner,
            result.speed(one),
            result.ratio(result.winner, one),
            predicted.get(one),
        )
        for one in result.check.configurations
    ]


def _cell(state: CalibrationState, place: CellKey, target: str) -> Cell:
    score, best, status = state.cells.get(place), state.best, state.status(place)
    mark = UNICODE.mark(status)
    if score is None or best is None:
        return Cell(status, mark, None, "", MEANINGS[status])
    relative = min(1.0, score.speed / best.speed)
    said = (
        f"{score.configuration.describe(target)}: {score.speed:.1f} tokens/s by replay of {counted(score.texts, 'text')}, "
        f"{MEANINGS[status]}"
    )
    return Cell(status, mark, heat(relative), f"{100 * relative:.0f}", said)
