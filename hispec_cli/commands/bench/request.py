"""The request for a benchmark, checked before torch is imported."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_state_path

from hispec.bench.compare import read_report
from hispec.bench.gates import Gate, parse_gate
from hispec.bench.journal import SUFFIX
from hispec.bench.names import ARMS, check_arms, default_arms
from hispec.bench.processes import Processes
from hispec.bench.record import Report
from hispec.datasets import Loaded, load
from hispec.errors import UnavailableError, UsageError
from hispec.journal import check_journal
from hispec_cli.checks import Choice, choose
from hispec_cli.commands.bench.options import ReportOptions, RunOptions
from hispec_cli.options import DecodingOptions, ModelOptions
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.report.files import check_output


@dataclass(frozen=True)
class BenchRequest:
    """A benchmark that can begin.

    Attributes:
        run: the options of the measurement.
        reports: the options of the report.
        choice: the model, and how to decode.
        arms: names, the one under test first.
        rows: the dataset.
        gates: conditions for an exit code of 3.
        old: an earlier report to compare with.
        journal: the file of this process's answers.
    """

    run: RunOptions
    reports: ReportOptions
    choice: Choice
    arms: Sequence[str]
    rows: Loaded
    gates: Sequence[Gate]
    old: Report | None
    journal: Path


def prepare(run: RunOptions, model: ModelOptions, decoding: DecodingOptions, reports: ReportOptions) -> BenchRequest:
    """Check everything that is known before the model is loaded, and read the dataset.

    Raises:
        UsageError: an option, profile, report, gate or dataset that cannot be.
        UnavailableError: a package, dataset or folder is not available.
    """
    asked = None if run.arms is None else _arms(run.arms)
    old = read_report(reports.compare) if reports.compare else None
    _check_outputs(reports)
    choice = choose(model, decoding)
    arms = asked or default_arms(choice.profile)
    gates = [parse_gate(expression, arms) for expression in reports.fail_if or ()]
    check_arms(arms, choice.profile, choice.resolved[0])
    journal = _journal(reports)
    check_journal(journal, resume=run.resume)
    with Loading(f"reading the dataset {run.dataset}"):
        rows = load(
            run.dataset, format_as=run.format_as, offline=model.offline, allow_code_execution=run.allow_code_execution
        )
    return BenchRequest(run, reports, choice, arms, rows, gates, old, journal)


def _arms(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ARMS:
            raise UsageError(f"there is no arm {name!r}", f"known: {', '.join(ARMS)}")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--arms is {text!r}", "name every arm once, for example --arms hispec,autoregressive")
    return names


def _check_outputs(reports: ReportOptions) -> None:
    """Refuse, before the run, outputs that could not be written after it."""
    for path in reports.output or ():
        check_output(path, (".json", ".csv", ".md"))
    if reports.report is not None:
        check_output(reports.report, (".html",))
    if reports.step_summary and not os.environ.get("GITHUB_STEP_SUMMARY"):
        raise UsageError("--step-summary needs GITHUB_STEP_SUMMARY, which GitHub sets", "leave it out elsewhere")


def _journal(reports: ReportOptions) -> Path:
    """Return the file of answers: next to the requested report, else in the user's state folder."""
    asked, processes = reports.written(), Processes()
    base = asked[0] if asked else user_state_path("hispec") / "bench"
    if not asked:
        try:
            base.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(f"{base.parent} cannot be made: {error.strerror}", "pass -o FILE.json") from None
    part = f".{processes.rank}" if processes.count > 1 else ""
    return base.with_name(base.name + part + SUFFIX)
