"""`hispec bench`: how fast, how exact, and whether a build should fail for it."""

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hispec.bench.names import ARMS, check_arms
from hispec.errors import UnavailableError, UsageError
from hispec.limits import MOST
from hispec_cli.checks import choose
from hispec_cli.commands.generate import INTERRUPTED
from hispec_cli.completion import arms as completed_arms
from hispec_cli.completion import datasets, formats
from hispec_cli.help import Group, examples
from hispec_cli.options import CommonOptions, DecodingOptions, Format, ModelOptions, grouped, output_option
from hispec_cli.ui.console import say
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.output import ReaderLeft, write, write_json
from hispec_cli.ui.safe_text import visible

if TYPE_CHECKING:
    from hispec.bench.processes import Processes

GATE_FAILED, DIFFERS = 3, 4

EXAMPLES = examples(
    "hispec bench --report bench.html", "hispec bench --dataset gsm8k --arms hispec,hf,autoregressive --limit 50"
)
_run = partial(typer.Option, rich_help_panel="What is measured")

app = typer.Typer(cls=Group, epilog=EXAMPLES, invoke_without_command=True, rich_markup_mode=None)


@dataclass(frozen=True)
class RunOptions:
    """What is measured."""

    dataset: Annotated[
        str,
        _run(
            metavar="NAME|FILE",
            autocompletion=datasets,
            help="A dataset's name, or a JSONL file with prompt or question.",
        ),
    ] = "sample"
    format_as: Annotated[
        str | None,
        _run(metavar="NAME", autocompletion=formats, help="Read the file as this dataset's: its prompts and scores."),
    ] = None
    limit: Annotated[int, _run(min=0, max=MOST, metavar="N", help="Rows to answer; 0 takes all.")] = 32
    repeats: Annotated[int, _run(min=1, max=10_000, metavar="N", help="How often each row is answered.")] = 1
    warmup: Annotated[int, _run(min=0, max=MOST, metavar="N", help="Rows answered before, not measured.")] = 2
    arms: Annotated[
        str,
        _run(
            metavar="A,B,...",
            autocompletion=completed_arms,
            help=f"Of {', '.join(ARMS)}; the first is the one under test.",
        ),
    ] = "hispec,single-layer,autoregressive"
    allow_code_execution: Annotated[
        bool, _run("--allow-code-execution", help="Let humaneval run what the model writes, within limits.")
    ] = False
    resume: Annotated[bool, _run("--resume", help="Continue a run that was cut off.")] = False


@dataclass(frozen=True)
class ReportOptions:
    """What is made of it."""

    output: Annotated[
        list[Path] | None,
        output_option("--output", "-o", metavar="FILE", help="Write the report: .json, .csv or .md; repeatable."),
    ] = None
    report: Annotated[Path | None, output_option(metavar="FILE.html", help="Write a page with charts.")] = None
    fail_if: Annotated[
        list[str] | None,
        output_option(metavar="GATE", help="Exit 3 where this surely holds, e.g. 'speedup<1.2'; repeatable."),
    ] = None
    compare: Annotated[Path | None, output_option(metavar="OLD.json", help="Show what changed since a report.")] = None
    step_summary: Annotated[
        bool, output_option("--step-summary", help="Add the report to the summary of a GitHub workflow's step.")
    ] = False
    format: Annotated[Format, output_option("--format", help="How to write the report to stdout.")] = Format.auto

    def written(self) -> list[Path]:
        """All files that the report goes to."""
        return [*(self.output or ()), *([self.report] if self.report else ())]


@app.callback()
@grouped
def bench(
    *,
    context: typer.Context,
    run: RunOptions,
    model: ModelOptions,
    decoding: DecodingOptions,
    reports: ReportOptions,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of reports and exit.")] = False,
    common: CommonOptions,
) -> None:
    """Measure speed-ups, compare every token with the target's own, and fail a build that is surely worse."""
    if context.invoked_subcommand is not None:
        return
    from hispec.bench.compare import compare, read_report
    from hispec.bench.gates import parse_gate
    from hispec.bench.journal import check_journal
    from hispec.bench.processes import Processes
    from hispec.bench.record import Report
    from hispec.datasets import load
    from hispec_cli.ui.report.context import Context

    if schema:
        write_json(Report.model_json_schema())
        return
    arms = _arms(run.arms)
    gates = [parse_gate(expression, arms) for expression in reports.fail_if or ()]
    old = read_report(reports.compare) if reports.compare else None
    _check_outputs(reports)
    choice = choose(model, decoding)
    check_arms(arms, choice.profile)
    check_journal(journal_path(reports, Processes()), resume=run.resume)
    with Loading(f"reading the dataset {run.dataset}"):
        rows = load(
            run.dataset, format_as=run.format_as, offline=model.offline, allow_code_execution=run.allow_code_execution
        )
    with Loading("importing torch"):
        from hispec_cli.benchmark import measure, show, write_files

    report, interrupted = measure(run, rows, arms, choice, reports)
    if report is None:
        raise typer.Exit(INTERRUPTED if interrupted else 0)
    verdicts = [gate.judge(report) for gate in gates]
    shown = Context(verdicts, compare(old, report) if old else None, ["hispec", *sys.argv[1:]])
    code = INTERRUPTED if interrupted else 0
    for verdict in verdicts:
        say(
            f"gate {verdict.expression}: {verdict.outcome}: {verdict.message}",
            "red" if verdict.outcome == "failed" else "dim",
        )
    if any(verdict.outcome == "failed" for verdict in verdicts):
        code = code or GATE_FAILED
    if any(arm.lossless is not None and arm.lossless.errors for arm in report.arms):
        say("answers differ from the target's own: losslessness is broken", "bold red")
        code = INTERRUPTED if interrupted else DIFFERS
    write_files(report, shown, reports)
    try:
        show(report, shown, reports.format)
    except (ReaderLeft, UnavailableError):
        if not code:  # a verdict says more than a closed or full stdout
            raise
    raise typer.Exit(code)


@app.command("compare")
@grouped
def compare_reports(
    *,
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="A report.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="A later one.")],
    format: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.auto,  # noqa: A002
    common: CommonOptions,
) -> None:
    """Show what changed between two reports, and what cannot be told."""
    from hispec.bench.compare import compare, read_report
    from hispec_cli.ui.report.tables import changes_to_markdown

    comparison = compare(read_report(old), read_report(new))
    if format in (Format.json, Format.jsonl):
        write_json(comparison.to_record())
        return
    for warning in comparison.warnings:
        say(f"note: {warning}", "yellow")
    write(visible(changes_to_markdown(comparison.changes)) + "\n")


def _arms(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ARMS:
            raise UsageError(f"there is no arm {name!r}", f"known: {', '.join(ARMS)}")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--arms is {text!r}", "name every arm once, for example --arms hispec,autoregressive")
    return names


def _check_outputs(reports: ReportOptions) -> None:
    """Find out before the run what would lose its result after it."""
    from hispec_cli.ui.report.files import check_output

    for path in reports.output or ():
        check_output(path, (".json", ".csv", ".md"))
    if reports.report is not None:
        check_output(reports.report, (".html",))
    if reports.step_summary and not os.environ.get("GITHUB_STEP_SUMMARY"):
        raise UsageError("--step-summary needs GITHUB_STEP_SUMMARY, which GitHub sets", "leave it out elsewhere")


def journal_path(reports: ReportOptions, processes: "Processes") -> Path:
    """Return where the answers are kept: beside the report that is asked for, else where programs keep their state."""
    from platformdirs import user_state_path

    from hispec.bench.journal import SUFFIX

    asked = reports.written()
    if asked:
        base = asked[0]
    else:
        base = user_state_path("hispec") / "bench"
        try:
            base.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(f"{base.parent} cannot be made: {error.strerror}", "pass -o FILE.json") from None
    part = f".{processes.rank}" if processes.count > 1 else ""
    return base.with_name(base.name + part + SUFFIX)
