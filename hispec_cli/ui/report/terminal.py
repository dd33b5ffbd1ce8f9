"""A report, or what changed since one, on stdout."""

import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hispec.bench.compare import Comparison
from hispec.bench.record import Estimate, Report
from hispec.counts import counted
from hispec_cli.options import Format
from hispec_cli.ui.console import say
from hispec_cli.ui.output import write, write_json
from hispec_cli.ui.report.context import (
    Context,
    headline,
    levels_of,
    losslessness,
    notable,
    number,
    plain_number,
    share,
)
from hispec_cli.ui.report.tables import changes_to_markdown, to_markdown
from hispec_cli.ui.safe_text import visible

STYLES = {"good": "green", "bad": "bold red", "neutral": ""}


def write_to_stdout(report: Report, context: Context, format_: Format) -> None:
    """Write a report; on a terminal or with JSON, print the changes since an earlier report on stderr."""
    on_terminal = format_ is Format.auto and sys.stdout.isatty()
    if (format_.is_json or on_terminal) and context.comparison is not None:
        _say_warnings(context.comparison)
        for change in notable(context.comparison):
            say(
                f"{change.arm} {change.key}: {plain_number(change.old)} -> {plain_number(change.new)}, {change.direction}"
            )
    if format_.is_json:
        write_json(json.loads(report.to_json()))
    elif on_terminal:
        show_report(report)
    else:
        write(visible(to_markdown(report, context)))


def show_comparison(comparison: Comparison, format_: Format) -> None:
    """Write what changed between two reports."""
    if format_.is_json:
        write_json(comparison.to_record())
        return
    _say_warnings(comparison)
    write(visible(changes_to_markdown(comparison.changes)) + "\n")


def _say_warnings(comparison: Comparison) -> None:
    for warning in comparison.warnings:
        say(f"note: {warning}", "yellow")


def show_report(report: Report) -> None:
    """Write headline and figures of all arms to stdout."""
    console = Console(file=sys.stdout, markup=False, highlight=False)
    for statement in (headline(report), losslessness(report)):
        console.print(Text(visible(statement.text), STYLES[statement.tone]))
    for caveat in report.caveats:
        console.print(Text(visible(caveat), "yellow"))
    console.print(_table(report))
    for arm in report.arms:
        if arm.levels:
            console.print(Text(visible(f"{arm.name}: {levels_of(arm)} > target")))


def _table(report: Report) -> Table:
    """Return a table of one row an arm, narrow enough for a small window; the report files hold the rest."""
    baselines = [name for name in ("autoregressive", "hf") if any(name in arm.speedup for arm in report.arms)]
    table = Table(
        title=Text(visible(f"{report.profile} on {report.dataset.name}, {counted(report.dataset.rows, 'prompt')}")),
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    table.add_column("arm", no_wrap=True)
    heads = [
        "tokens/s",
        *({"autoregressive": "over auto-\nregressive", "hf": "over\nhf"}[name] for name in baselines),
        "tokens\nper pass",
        "accuracy",
        "identical",
    ]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for arm in report.arms:
        speed, same, score = arm.tokens_per_second, arm.lossless, arm.accuracy
        cells = [
            arm.name,
            _estimate(Estimate(value=speed, ci95=arm.ci95), 1) if speed is not None else "",
            *(_estimate(arm.speedup.get(name)) for name in baselines),
            number(arm.tokens_per_target_pass, 2),
            share(score.value) if score else "",
            f"{same.identical}/{same.of}" if same else "",
        ]
        table.add_row(*(Text(visible(cell)) for cell in cells))
    return table


def _estimate(estimate: Estimate | None, digits: int = 2) -> str:
    """Return the value with its interval below."""
    if estimate is None:
        return ""
    value = f"{estimate.value:.{digits}f}"
    if estimate.ci95 is None:
        return value
    low, high = estimate.ci95
    return f"{value}\n{low:.{digits}f}-{high:.{digits}f}"
