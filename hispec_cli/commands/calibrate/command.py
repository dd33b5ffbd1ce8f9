"""`hispec calibrate`: find the exits, lengths and policy that are fastest here, and write them as a profile."""

from pathlib import Path
from typing import Annotated

import typer

from hispec_cli.commands.calibrate.options import LoadingOptions, SearchOptions
from hispec_cli.help import examples
from hispec_cli.options import CommonOptions, ModelOptions, grouped, output_option
from hispec_cli.ui.loading import Loading

EXAMPLES = examples("hispec calibrate --budget 10m", "hispec calibrate --profile layerskip-llama3-8b --dataset gsm8k")


@grouped
def calibrate(
    *,
    model: ModelOptions,
    search: SearchOptions,
    loading: LoadingOptions,
    write: Annotated[
        Path | None,
        output_option(metavar="FILE.yaml", help="Path of the profile to write; by default NAME-calibrated.yaml."),
    ] = None,
    report: Annotated[Path | None, output_option(metavar="FILE.html", help="Write an HTML page with charts.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and exit, without loading weights.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a calibration that was interrupted.")] = False,
    common: CommonOptions,
) -> None:
    """Find the exits, lengths and policy that are fastest on this machine, and write them as a profile."""
    from hispec_cli.commands.calibrate.request import prepare

    request = prepare(model, search, loading, write, report)
    with Loading("importing torch"):
        from hispec_cli.commands.calibrate.run import plan, run
    if dry_run:
        plan(request)
        return
    raise typer.Exit(run(request, resume=resume))
