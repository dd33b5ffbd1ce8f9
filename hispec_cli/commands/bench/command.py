"""`hispec bench`: measure speed, compare token ids, and fail a build on a regression."""

from pathlib import Path
from typing import Annotated

import typer

from hispec_cli.commands.bench.options import ReportOptions, RunOptions
from hispec_cli.help import Group, examples
from hispec_cli.options import CommonOptions, DecodingOptions, Format, ModelOptions, grouped
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.output import write_json

EXAMPLES = examples(
    "hispec bench --report bench.html", "hispec bench --dataset gsm8k --arms hispec,hf,autoregressive --limit 50"
)

app = typer.Typer(cls=Group, epilog=EXAMPLES, invoke_without_command=True, rich_markup_mode=None)


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
    """Measure speed-ups, compare every token with the target's own, and fail a build on a regression."""
    if context.invoked_subcommand is not None:
        return
    if schema:
        from hispec.bench.record import Report

        write_json(Report.model_json_schema())
        return
    from hispec_cli.commands.bench.request import prepare

    request = prepare(run, model, decoding, reports)
    with Loading("importing torch"):
        from hispec_cli.commands.bench.run import carry_out
    raise typer.Exit(carry_out(request))


@app.command("compare")
@grouped
def compare_reports(
    *,
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The older report, in JSON.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The newer report, in JSON.")],
    format: Annotated[Format, typer.Option("--format", help="Format of the comparison.")] = Format.auto,  # noqa: A002
    common: CommonOptions,
) -> None:
    """Show the changes between two reports, and which of them are significant."""
    from hispec.bench.compare import compare, read_report
    from hispec_cli.ui.report.terminal import show_comparison

    show_comparison(compare(read_report(old), read_report(new)), format)
