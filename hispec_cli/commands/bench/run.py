"""Runs a benchmark, and writes its results: the report on stdout, files, the exit code."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hispec.api import Engine
from hispec.bench.compare import compare
from hispec.bench.gates import GateVerdict
from hispec.bench.journal import Journal
from hispec.bench.processes import Processes
from hispec.bench.record import DatasetInfo, Measurement, Report, Setup
from hispec.bench.runner import Runner, configuration, describe_machine, hash_of, tasks
from hispec.bench.statistics import summarize
from hispec.counts import counted
from hispec.datasets import execution, hash_rows
from hispec.datasets.base import Row
from hispec.datasets.humaneval import HumanEval
from hispec.errors import UnavailableError, UsageError
from hispec_cli.checks import resolve
from hispec_cli.commands.bench.options import ReportOptions
from hispec_cli.commands.bench.request import BenchRequest
from hispec_cli.engine import load_engine, on_own_device, say_left_out
from hispec_cli.exit_codes import DIFFERS, GATE_FAILED, INTERRUPTED
from hispec_cli.options import Format
from hispec_cli.ui.bench_progress import BenchProgress
from hispec_cli.ui.console import say
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.output import ReaderLeft, write_json
from hispec_cli.ui.report.context import Context
from hispec_cli.ui.report.files import write_report
from hispec_cli.ui.report.tables import to_markdown
from hispec_cli.ui.report.terminal import write_to_stdout
from hispec_cli.ui.signals import ctrl_c


def carry_out(request: BenchRequest) -> int:
    """Run the benchmark, write and show the report, and return the exit code."""
    report, interrupted = measure(request)
    if report is None:
        return INTERRUPTED if interrupted else 0
    verdicts = [gate.apply(report) for gate in request.gates]
    verified = _report_gates(report, verdicts)
    code = INTERRUPTED if interrupted else verified
    context = Context(verdicts, compare(request.old, report) if request.old else None, ["hispec", *sys.argv[1:]])
    _write_files(report, context, request.reports)
    try:
        write_to_stdout(report, context, request.reports.format)
    except (ReaderLeft, UnavailableError):
        if not code:  # a verdict says more than a closed or full stdout
            raise
    return code


def measure(request: BenchRequest) -> tuple[Report | None, bool]:
    """Return the report, None in processes that do not report, and whether the run was interrupted."""
    run, rows, arms = request.run, request.rows, request.arms
    if run.allow_code_execution and isinstance(rows.dataset, HumanEval):
        say(f"--allow-code-execution {execution.WARNING}", "yellow")
    with Processes() as processes:
        engine = load_engine(on_own_device(request.choice, processes))
        limit = _answer_limit(request, engine)
        runner = Runner(engine, rows.dataset, arms, limit, force=request.choice.model.force)
        chosen, warmup = _choose(request, runner)
        setup = _setup(request, engine, chosen, limit, processes)
        share = processes.share_of(tasks(chosen, run.repeats))
        keys = [task.key for task in share]
        with Journal(request.journal, setup.config, keys, arms, resume=run.resume) as journal:
            if journal.set_aside is not None:
                say(f"an earlier run's answers are now in {journal.set_aside}")
            progress = BenchProgress(arms, journal.measured, len(share), quiet=not processes.reports)
            interrupted = False
            try:
                with ctrl_c(), progress:
                    runner.warm_up(warmup)
                    for measurements in runner.run(share, journal):
                        progress.see(measurements)
                        if request.reports.format is Format.jsonl:
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
    """Write one line for each answer; a closed pipe does not stop the benchmark."""
    with suppress(ReaderLeft):
        for measurement in measurements:
            write_json(measurement.model_dump())


def _answer_limit(request: BenchRequest, engine: Engine) -> int:
    """Return the maximum number of tokens in an answer: the user's choice, else the dataset's convention."""
    asked = resolve(request.choice.profile, request.choice.decoding)[1]["max_new_tokens"] in ("option", "environment")
    return engine.settings.max_new_tokens if asked else request.rows.dataset.max_new_tokens


def _choose(request: BenchRequest, runner: Runner) -> tuple[list[Row], list[Row]]:
    """Return rows to measure and rows to warm up with, without prompts that do not fit the context, which is reported."""
    run, rows = request.run, request.rows
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
    say_left_out(left_out, context)
    chosen = fitting[: run.limit] if run.limit else fitting
    return chosen, (fitting[len(chosen) :] or chosen)[: run.warmup]


def _setup(request: BenchRequest, engine: Engine, chosen: Sequence[Row], limit: int, processes: Processes) -> Setup:
    """Return the conditions of the run."""
    run, rows = request.run, request.rows
    dataset = DatasetInfo(
        name=rows.dataset.name,
        rows=len(chosen),
        sha256=hash_rows(chosen),
        source=rows.source,
        metric=rows.dataset.metric,
    )
    told = dataset.model_dump(mode="json") | {"code_execution": run.allow_code_execution}
    with Loading("taking digests of the model's files"):
        config = configuration(engine, told, request.arms, run.repeats, limit, processes.count)
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


def _report_gates(report: Report, verdicts: Sequence[GateVerdict]) -> int:
    """Print the results of the gates, and whether answers differ; return the exit code."""
    for verdict in verdicts:
        style = "red" if verdict.outcome == "failed" else "dim"
        say(f"gate {verdict.expression}: {verdict.outcome}: {verdict.message}", style)
    if any(arm.lossless is not None and arm.lossless.errors for arm in report.arms):
        say("answers differ from the target's own: losslessness is broken", "bold red")
        return DIFFERS
    return GATE_FAILED if any(verdict.outcome == "failed" for verdict in verdicts) else 0


def _write_files(report: Report, context: Context, reports: ReportOptions) -> None:
    """Write the requested reports."""
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
