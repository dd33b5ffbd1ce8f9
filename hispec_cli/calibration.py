"""Running a calibration for the command line: what it loads, keeps on disk, shows and writes."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from hispec.api import Engine
from hispec.bench.processes import Processes
from hispec.budget import Budget
from hispec.calibration.job import default_exits, fingerprint, job_of
from hispec.calibration.search import PLAIN, Space
from hispec.calibration.session import Calibrated, Job, Session
from hispec.calibration.traces import Reader
from hispec.calibration.writing import calibrated_profile, verdict, write_profile
from hispec.counts import counted
from hispec.datasets import Loaded
from hispec.errors import UsageError
from hispec.models.loading import load_config
from hispec.profile import resolve_model
from hispec.text import encode_prompt
from hispec_cli.benchmark import on_own_device
from hispec_cli.checks import Choice
from hispec_cli.commands.calibrate import SearchOptions, check_exit_layers
from hispec_cli.commands.generate import INTERRUPTED, load_engine
from hispec_cli.ui.calibration import CalibrationView, show_result
from hispec_cli.ui.console import ctrl_c, say
from hispec_cli.ui.loading import Loading

SMALL_PERIODS = 8
"""Of `--periods`, those up to it are also tried as draft lengths of a hierarchy."""


def plan(choice: Choice, rows: Loaded, budget: float, exits: Sequence[int], periods: Sequence[int]) -> None:
    """Say what a calibration would do; the model's configuration is read, no weights."""
    profile = choice.profile
    depth = load_config(resolve_model(profile.target.model), profile.target.revision).num_layers
    check_exit_layers(exits, profile.target.model, depth)
    chosen = list(exits) or default_exits(depth)
    space = _narrowed(Space(tuple(Reader(profile.target.model, exit_layer) for exit_layer in chosen)), periods)
    say(f"profile {profile.name}: {profile.target.model}, {counted(depth, 'layer')}")
    say(f"exits: {', '.join(map(str, chosen))}")
    say(f"{counted(len(rows.rows), 'prompt')} of {rows.source}, a third of them to check with")
    say(
        f"{counted(sum(1 for _ in space.static()), 'configuration')} of fixed length by replay, adaptive ones for the best"
    )
    say(f"budget: {budget:.0f} s; nothing was loaded or written")


def run(
    choice: Choice,
    rows: Loaded,
    search: SearchOptions,
    budget: Budget,
    exits: Sequence[int],
    periods: Sequence[int],
    path: Path,
    report: Path | None,
    *,
    resume: bool,
) -> int:
    """Calibrate: the exit code."""
    with Processes() as processes:
        engine = load_engine(on_own_device(choice, processes))
        prompts = _prompts(engine, rows)
        most = search.max_new_tokens or rows.dataset.max_new_tokens
        narrowed = _narrowed(Space(()), periods)
        job = job_of(
            engine,
            prompts,
            budget,
            exits=exits,
            draft_tokens=narrowed.draft_tokens if periods else (),
            validate_every=narrowed.validate_every if periods else (),
            most=most,
            seed=search.seed,
        )
        with Loading("taking digests of the model's files"):
            begun = fingerprint(engine, job, rows.sha256, processes.count)
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
                result = Session(job, folder, view.see, resume=resume, processes=processes).run()
        except KeyboardInterrupt:
            say("interrupted; go on with the same command and --resume")
            return INTERRUPTED
        if processes.reports:
            _finish(engine, job, rows, result, path, report)
    return 0


def _finish(engine: Engine, job: Job, rows: Loaded, result: Calibrated, path: Path, report: Path | None) -> None:
    """Show the result, then write the profile and the report: a full disk must not hide what was found."""
    show_result(job, result)
    say(verdict(result))
    profile = engine.profile
    write_profile(path, calibrated_profile(profile, result, _environment(engine, job, rows), path.stem))
    if report is not None:
        from hispec_cli.ui.report.calibration import write_calibration_report

        write_calibration_report(report, job, result, _environment(engine, job, rows), ["hispec", *sys.argv[1:]])
        say(f"written: {report}")
    say(f"written: {path}; use it with: --profile {path if '/' in str(path) else f'./{path}'}")
    if result.winner == PLAIN:
        say("its mode is autoregressive: it has no levels below the target", "yellow")


def _environment(engine: Engine, job: Job, rows: Loaded) -> dict[str, Any]:
    """What the figures hold for."""
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
    """The first turns that leave room for an answer."""
    template = engine.profile.chat_template
    encoded = [
        encode_prompt(engine.tokenizer, row.turns[0], raw=rows.dataset.raw, template=template) for row in rows.rows
    ]
    fitting = [ids for ids in encoded if len(ids) + 2 <= engine.context]
    if left_out := len(encoded) - len(fitting):
        say(
            f"left out: {counted(left_out, 'prompt')} beyond the context of {counted(engine.context, 'token')}",
            "yellow",
        )
    return fitting


def _narrowed(space: Space, periods: Sequence[int]) -> Space:
    """The space with periods of the user's choice."""
    if not periods:
        return space
    small = tuple(period for period in periods if period <= SMALL_PERIODS) or (min(periods),)
    return Space(space.exits, space.drafters, small, tuple(periods), space.words, space.ngrams, space.adaptive)
