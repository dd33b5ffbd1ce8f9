"""Runs a calibration, and writes its results: a summary on stderr, the profile, the page."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from platformdirs import user_state_path

from hispec.api import Engine
from hispec.bench.processes import Processes
from hispec.calibration.job import exits_to_consider, fingerprint, formats_below, job_of, space_of
from hispec.calibration.result import CalibrationResult
from hispec.calibration.run import CalibrationJob, CalibrationRun
from hispec.calibration.search import PLAIN, SearchSpace
from hispec.calibration.writing import advice, calibrated_profile, verdict, write_profile
from hispec.counts import counted
from hispec.datasets import Loaded
from hispec.errors import UsageError
from hispec.models.checkpoint import Checkpoint
from hispec.models.placement import Placement
from hispec.text import encode_prompt
from hispec_cli.commands.calibrate.request import CalibrateRequest, check_exit_layers
from hispec_cli.engine import load_engine, on_own_device, say_left_out
from hispec_cli.exit_codes import INTERRUPTED
from hispec_cli.ui.calibration_view import CalibrationView, show_result
from hispec_cli.ui.console import say
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.signals import ctrl_c

SMALL_PERIODS = 8
"""The largest of `--periods` that is also tried as a draft length of a hierarchy."""


def plan(request: CalibrateRequest) -> None:
    """Print the plan of a calibration; this reads the model's configuration, but no weights."""
    profile, rows = request.choice.profile, request.rows
    config = Checkpoint(profile.target.model, profile.target.revision).config
    depth, settings = config.num_layers, request.choice.settings
    check_exit_layers(request.exits, profile.target.model, depth)
    chosen = request.exits or exits_to_consider(depth)
    fused = Placement.of(settings).check(config, profile.target.model) is None
    formats = formats_below(settings.quantization) if fused else []
    space = _narrowed(space_of(profile.target.model, depth, chosen, formats), request.periods)
    say(f"profile {profile.name}: {profile.target.model}, {counted(depth, 'layer')}")
    say(f"exits: {', '.join(map(str, chosen))}")
    if formats:
        shallow = sorted({spec.exit_layer for spec in space.copies})
        say(
            f"copies in {' and '.join(formats)}, where they fit and are faster: whole, exits {', '.join(map(str, shallow))}"
        )
    say(f"{counted(len(rows.rows), 'prompt')} of {rows.source}, a third of them to check with")
    say(
        f"{counted(sum(1 for _ in space.static()), 'configuration')} of fixed length by replay, adaptive ones for the best"
    )
    say(f"budget: {request.budget.seconds:.0f} s; nothing was loaded or written")


def run(request: CalibrateRequest, *, resume: bool) -> int:
    """Calibrate, write and show the result, and return the exit code.

    Args:
        request: the request for the calibration.
        resume: whether to continue an interrupted calibration.
    """
    with Processes() as processes:
        engine = load_engine(on_own_device(request.choice, processes))
        with Loading("quantizing copies of the weights"):
            job = _job(request, engine)
        with Loading("taking digests of the model's files"):
            begun = fingerprint(engine, job, request.rows.sha256, processes.count)
        folder = user_state_path("hispec") / "calibrations" / begun
        if resume and not folder.is_dir():
            raise UsageError(
                "there is nothing to resume: no calibration of this profile, with the same model files, machine, "
                "options and data, was begun",
                "run without --resume",
            )
        view = CalibrationView(job, quiet=not processes.reports)
        try:
            with ctrl_c(), view:
                result = CalibrationRun(job, folder, view.see, resume=resume, processes=processes).run()
        except KeyboardInterrupt:
            say("interrupted; continue with the same command and --resume")
            return INTERRUPTED
        if processes.reports:
            _finish(request, engine, job, result)
    return 0


def _job(request: CalibrateRequest, engine: Engine) -> CalibrationJob:
    """Return the job of the calibration."""
    narrowed = _narrowed(SearchSpace(()), request.periods)
    return job_of(
        engine,
        _prompts(engine, request.rows),
        request.budget,
        exits=request.exits,
        draft_tokens=narrowed.draft_tokens if request.periods else (),
        validate_every=narrowed.validate_every if request.periods else (),
        max_new_tokens=request.search.max_new_tokens or request.rows.dataset.max_new_tokens,
        seed=request.search.seed,
    )


def _finish(request: CalibrateRequest, engine: Engine, job: CalibrationJob, result: CalibrationResult) -> None:
    """Show the result, then write the profile and the report, so that a full disk does not hide the result."""
    show_result(job, result)
    say(verdict(result))
    if (said := advice(result)) is not None:
        say(said, "yellow")
    path, report, environment = request.profile, request.report, _environment(engine, job, request.rows)
    write_profile(path, calibrated_profile(engine.profile, result, environment, path.stem))
    if report is not None:
        from hispec_cli.ui.report.calibration_page import write_calibration_report

        write_calibration_report(report, job, result, environment, ["hispec", *sys.argv[1:]])
        say(f"written: {report}")
    say(f"written: {path}; use it with: --profile {path if '/' in str(path) else f'./{path}'}")
    if result.winner == PLAIN:
        say("its mode is autoregressive: it has no levels below the target", "yellow")


def _environment(engine: Engine, job: CalibrationJob, rows: Loaded) -> dict[str, Any]:
    """Return the conditions of the figures."""
    told = {
        key: value if isinstance(value, int) else str(value)
        for key, value in engine.environment.items()
        if value is not None
    }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **told,
        "dataset": {
            "name": rows.dataset.name,
            "source": rows.source,
            "sha256": rows.sha256,
            "prompts": len(job.prompts),
        },
        "budget_s": job.budget.seconds,
        "seed": job.seed,
    }


def _prompts(engine: Engine, rows: Loaded) -> list[list[int]]:
    """Return the token ids of the first turns that leave room for an answer."""
    template = engine.profile.chat_template
    encoded = [
        encode_prompt(engine.tokenizer, row.turns[0], raw=rows.dataset.raw, template=template) for row in rows.rows
    ]
    fitting = [ids for ids in encoded if len(ids) + 2 <= engine.context]
    say_left_out(len(encoded) - len(fitting), engine.context)
    return fitting


def _narrowed(space: SearchSpace, periods: Sequence[int]) -> SearchSpace:
    """Return the space with periods of the user's choice."""
    if not periods:
        return space
    small = tuple(period for period in periods if period <= SMALL_PERIODS) or (min(periods),)
    return replace(space, draft_tokens=small, validate_every=tuple(periods))
