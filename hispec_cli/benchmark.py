"""Running a benchmark for the command line: what it loads, keeps on disk, shows and writes."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from hispec.api import Engine
from hispec.bench.journal import Journal
from hispec.bench.processes import Processes
from hispec.bench.record import DatasetInfo, Measurement, Report, Setup
from hispec.bench.runner import Runner, configuration, describe_machine, hash_of, tasks
from hispec.bench.statistics import summarize
from hispec.counts import counted
from hispec.datasets import Loaded, execution, hash_rows
from hispec.datasets.base import Row
from hispec.datasets.humaneval import HumanEval
from hispec.errors import UnavailableError, UsageError
from hispec_cli.checks import Choice
from hispec_cli.commands.bench import ReportOptions, RunOptions, journal_path
from hispec_cli.commands.generate import load_engine
from hispec_cli.options import DecodingOptions, Format
from hispec_cli.ui.console import ctrl_c, say
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.output import ReaderLeft, write, write_json
from hispec_cli.ui.progress import BenchProgress
from hispec_cli.ui.report.context import Context, notable, plain_number
from hispec_cli.ui.report.files import write_report
from hispec_cli.ui.report.tables import to_markdown
from hispec_cli.ui.report.terminal import show_report
from hispec_cli.ui.safe_text import visible


def measure(
    run: RunOptions, rows: Loaded, arms: Sequence[str], choice: Choice, reports: ReportOptions
) -> tuple[Report | None, bool]:
    """Run the benchmark: the report, None in processes that do not report, and whether it was interrupted."""
    if run.allow_code_execution and isinstance(rows.dataset, HumanEval):
        say(f"--allow-code-execution {execution.WARNING}", "yellow")
    with Processes() as processes:
        engine = load_engine(on_own_device(choice, processes))
        limit = _answer_limit(rows, choice.decoding, engine)
        runner = Runner(engine, rows.dataset, arms, limit, force=choice.model.force)
        chosen, warmup = _choose(rows, runner, run)
        setup = _setup(run, arms, engine, rows, chosen, limit, processes)
        share = processes.share_of(tasks(chosen, run.repeats))
        keys, path = [task.key for task in share], journal_path(reports, processes)
        with Journal(path, setup.config, keys, arms, resume=run.resume) as journal:
            if journal.set_aside is not None:
                say(f"an earlier run's answers are now in {journal.set_aside}")
            progress = BenchProgress(arms, journal.measured, len(share), quiet=not processes.reports)
            interrupted = False
            try:
                with ctrl_c(), progress:
                    runner.warm_up(warmup)
                    for measurements in runner.run(share, journal):
                        progress.see(measurements)
                        if reports.format is Format.jsonl:
                            _stream(measurements)
            except KeyboardInterrupt:
                interrupted = True
                say(f"interrupted; continue with --resume (answers are in {journal.path})")
            gathered = processes.gather(journal.measured)
        if not processes.reports:
            return None, interrupted
        status = setup.model_copy(update={"status": "interrupted"}) if interrupted else setup
        return summarize(status, arms, gathered), interrupted


def _stream(measurements: Sequence[Measurement]) -> None:
    """One line an answer; that nobody reads them is no reason to stop measuring."""
    with suppress(ReaderLeft):
        for measurement in measurements:
            write_json(measurement.model_dump())


def on_own_device(choice: Choice, processes: Processes) -> Choice:
    """Where several processes share a machine with GPUs, let each take its own."""
    if processes.count == 1 or choice.decoding.device not in (None, "auto", "cuda"):
        return choice
    if not torch.cuda.is_available():
        return choice
    device = f"cuda:{processes.local_rank % torch.cuda.device_count()}"
    return replace(choice, decoding=replace(choice.decoding, device=device))


def _answer_limit(rows: Loaded, decoding: DecodingOptions, engine: Engine) -> int:
    """What the user asked for, else the dataset's convention."""
    asked = decoding.max_new_tokens is not None or bool(os.environ.get("HISPEC_MAX_NEW_TOKENS"))
    return engine.settings.max_new_tokens if asked else rows.dataset.max_new_tokens


def _choose(rows: Loaded, runner: Runner, run: RunOptions) -> tuple[list[Row], list[Row]]:
    """The rows to measure and those to warm up with; prompts that do not fit the context are left out, audibly."""
    wanted = run.limit + run.warmup if run.limit else len(rows.rows)
    fitting: list[Row] = []
    left_out = 0
    for row in rows.rows:
        if len(fitting) == wanted:
            break
        if runner.fits(row):
            fitting.append(row)
        else:
            left_out += 1
    context = runner.engine.context
    if not fitting:
        raise UsageError(
            f"no prompt of {run.dataset} fits the context of {counted(context, 'token')}", "choose another dataset"
        )
    if left_out:
        say(f"left out: {counted(left_out, 'prompt')} beyond the context of {counted(context, 'token')}", "yellow")
    chosen = fitting[: run.limit] if run.limit else fitting
    return chosen, (fitting[len(chosen) :] or chosen)[: run.warmup]


def _setup(
    run: RunOptions,
    arms: Sequence[str],
    engine: Engine,
    rows: Loaded,
    chosen: Sequence[Row],
    limit: int,
    processes: Processes,
) -> Setup:
    """Everything about the run that is not a measurement."""
    dataset = DatasetInfo(
        name=rows.dataset.name,
        rows=len(chosen),
        sha256=hash_rows(chosen),
        source=rows.source,
        metric=rows.dataset.metric,
    )
    told = dataset.model_dump(mode="json") | {"code_execution": run.allow_code_execution}
    with Loading("taking digests of the model's files"):
        config = configuration(engine, told, arms, run.repeats, limit, processes.count)
    return Setup(
        status="complete",
        profile=engine.profile.name,
        dataset=dataset,
        repeats=run.repeats,
        warmup=run.warmup,
        synthetic_weights=engine.settings.load_format == "dummy",
        environment=describe_machine(engine, processes.count),
        config=config,
        config_hash=hash_of(config),
    )


def write_files(report: Report, context: Context, reports: ReportOptions) -> None:
    """Write what was asked for."""
    for path in reports.written():
        write_report(path, report, context)
        say(f"written: {path}")
    if reports.step_summary:
        summary = Path(os.environ["GITHUB_STEP_SUMMARY"])
        try:
            with summary.open("a", encoding="utf-8") as file:
                file.write(to_markdown(report, context) + "\n")
        except OSError as error:
            raise UnavailableError(
                f"{summary} cannot be written: {error.strerror}", "leave out --step-summary"
            ) from None


def show(report: Report, context: Context, format: Format) -> None:  # noqa: A002
    """The report on stdout, and on a terminal or beside JSON what changed since an earlier one on stderr."""
    told = format in (Format.json, Format.jsonl) or (format is Format.auto and sys.stdout.isatty())
    if told and context.comparison is not None:
        for warning in context.comparison.warnings:
            say(f"note: {warning}", "yellow")
        for change in notable(context.comparison):
            say(
                f"{change.arm} {change.key}: {plain_number(change.old)} -> {plain_number(change.new)}, {change.direction}"
            )
    if format in (Format.json, Format.jsonl):
        write_json(json.loads(report.to_json()))
    elif format is Format.auto and sys.stdout.isatty():
        show_report(report)
    else:
        write(visible(to_markdown(report, context)))
