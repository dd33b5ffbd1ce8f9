"""The options of `hispec bench`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hispec.bench.names import ARMS
from hispec.limits import MAX_INT
from hispec_cli.completion import arms as completed_arms
from hispec_cli.completion import formats
from hispec_cli.options import Format, dataset_option, output_option

_run = partial(typer.Option, rich_help_panel="What is measured")


@dataclass(frozen=True)
class RunOptions:
    """Options of the measurement."""

    dataset: Annotated[str, dataset_option(_run)] = "sample"
    format_as: Annotated[
        str | None,
        _run(
            metavar="NAME",
            autocompletion=formats,
            help="Read the file in this dataset's format, with its prompts and scores.",
        ),
    ] = None
    limit: Annotated[int, _run(min=0, max=MAX_INT, metavar="N", help="Number of rows to answer; 0 answers all.")] = 32
    repeats: Annotated[int, _run(min=1, max=10_000, metavar="N", help="Number of times that each row is answered.")] = 1
    warmup: Annotated[
        int, _run(min=0, max=MAX_INT, metavar="N", help="Number of rows to answer first, without measuring them.")
    ] = 2
    arms: Annotated[
        str | None,
        _run(
            metavar="A,B,...",
            autocompletion=completed_arms,
            show_default="hispec,single-layer,autoregressive, and single-layer-published where levels are quantized",
            help=f"Arms to measure; the first is the one under test. The arms are {', '.join(ARMS)}.",
        ),
    ] = None
    allow_code_execution: Annotated[
        bool,
        _run(
            "--allow-code-execution", help="Let humaneval run code that the model writes, with limits on its resources."
        ),
    ] = False
    resume: Annotated[bool, _run("--resume", help="Continue a run that was interrupted.")] = False


@dataclass(frozen=True)
class ReportOptions:
    """Options of the report."""

    output: Annotated[
        list[Path] | None,
        output_option(
            "--output", "-o", metavar="FILE", help="Write the report to a file: .json, .csv or .md. Repeatable."
        ),
    ] = None
    report: Annotated[Path | None, output_option(metavar="FILE.html", help="Write an HTML page with charts.")] = None
    fail_if: Annotated[
        list[str] | None,
        output_option(
            metavar="GATE",
            help="Exit with code 3 if this holds, in the whole 95 % interval, e.g. 'speedup<1.2'. Repeatable.",
        ),
    ] = None
    compare: Annotated[
        Path | None, output_option(metavar="OLD.json", help="Compare with an earlier report, in JSON.")
    ] = None
    step_summary: Annotated[
        bool, output_option("--step-summary", help="Add the report to the job summary of a GitHub workflow.")
    ] = False
    format: Annotated[Format, output_option("--format", help="Format of the report on stdout.")] = Format.auto

    def written(self) -> list[Path]:
        """Return all files that the report goes to."""
        return [*(self.output or ()), *([self.report] if self.report else ())]
