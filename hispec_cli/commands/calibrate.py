"""`hispec calibrate`: find the exits, lengths and policy that are fastest here, and write them as a profile."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hispec.budget import Budget
from hispec.counts import counted
from hispec.errors import UsageError
from hispec.limits import LARGEST_SEED, MOST
from hispec_cli.checks import YAML, choose, depth_of, is_dummy
from hispec_cli.completion import datasets, formats
from hispec_cli.help import examples
from hispec_cli.options import (
    CommonOptions,
    DecodingOptions,
    DeviceOption,
    DtypeOption,
    ModelOptions,
    StackOption,
    grouped,
    output_option,
)
from hispec_cli.ui.loading import Loading

FEWEST_PROMPTS = 6
"""Two thirds of them to calibrate on, a third to check with."""
LONGEST_BUDGET = 30 * 24 * 3600
"""Seconds."""
MOST_EXITS = 1000
"""No model has as many layers."""
UNITS = {"s": 1, "m": 60, "h": 3600}

EXAMPLES = examples("hispec calibrate --budget 10m", "hispec calibrate --profile layerskip-llama3-8b --dataset gsm8k")
_search = partial(typer.Option, rich_help_panel="Search")


@dataclass(frozen=True)
class SearchOptions:
    """What is looked at."""

    budget: Annotated[str, _search(metavar="TIME", help="Time to take, loading included, e.g. 90s, 10m or 1h.")] = "10m"
    exit_layers: Annotated[
        str | None,
        _search(metavar="A:B:STEP", help="Exits to look at, B among them; or a list: 1,2,4. Some by default."),
    ] = None
    periods: Annotated[
        str | None,
        _search(
            metavar="A,B,...", help="Tokens at which the target validates; up to 8 of them also at which to judge."
        ),
    ] = None
    dataset: Annotated[
        str,
        _search(
            metavar="NAME|FILE",
            autocompletion=datasets,
            help="A dataset's name, or a JSONL file with prompt or question.",
        ),
    ] = "sample"
    format_as: Annotated[
        str | None,
        _search(metavar="NAME", autocompletion=formats, help="Read the file as this dataset's: its prompts."),
    ] = None
    limit: Annotated[
        int,
        _search(
            min=FEWEST_PROMPTS, max=MOST, metavar="N", help="Prompts to take; a third of them is only checked with."
        ),
    ] = 90
    max_new_tokens: Annotated[int | None, _search(min=2, max=MOST, metavar="N", help="Most tokens of an answer.")] = (
        None
    )
    device: DeviceOption = None
    dtype: DtypeOption = None
    stack: StackOption = None
    seed: Annotated[int, _search(min=0, max=LARGEST_SEED, metavar="N", help="Of all that is drawn.")] = 0


@grouped
def calibrate(
    *,
    model: ModelOptions,
    search: SearchOptions,
    write: Annotated[
        Path | None, output_option(metavar="FILE.yaml", help="The profile to write; NAME-calibrated.yaml by default.")
    ] = None,
    report: Annotated[Path | None, output_option(metavar="FILE.html", help="Write a page with charts.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, load no weights.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a calibration that was cut off.")] = False,
    common: CommonOptions,
) -> None:
    """Find the exits, lengths and policy that are fastest on this machine, and write them as a profile."""
    budget = Budget(seconds_of(search.budget))
    exits = exits_of(search.exit_layers) if search.exit_layers else []
    periods = numbers_of(search.periods, "--periods") if search.periods else []
    from hispec.datasets import load
    from hispec_cli.ui.report.files import check_output

    for path, endings in ((write, YAML), (report, (".html",))):
        if path is not None:
            check_output(path, endings)
    choice = choose(model, DecodingOptions(device=search.device, dtype=search.dtype, stack=search.stack))
    target = choice.profile.target
    check_exit_layers(exits, target.model, depth_of(target, dummy=is_dummy(choice.decoding)))
    written = write or Path(f"{choice.profile.name.replace('/', '-')}-calibrated.yaml")
    check_output(written, YAML)
    with Loading(f"reading the dataset {search.dataset}"):
        rows = load(search.dataset, format_as=search.format_as, limit=search.limit, offline=model.offline)
    if len(rows.rows) < FEWEST_PROMPTS:
        raise UsageError(
            f"{search.dataset} has {counted(len(rows.rows), 'prompt')}, too few to calibrate on",
            f"give a file of at least {FEWEST_PROMPTS}, or another dataset",
        )
    with Loading("importing torch"):
        from hispec_cli.calibration import plan, run

    if dry_run:
        plan(choice, rows, budget.seconds, exits, periods)
        return
    raise typer.Exit(run(choice, rows, search, budget, exits, periods, written, report, resume=resume))


def check_exit_layers(exits: Sequence[int], model: str, depth: int | None) -> None:
    """Refuse `--exit-layers` that a model is too shallow for.

    Args:
        exits: ascending; none where they are not asked for.
        model: its name.
        depth: its number of layers, None where that is not known yet.

    Raises:
        UsageError: naming the deepest exit, and those that would do.
    """
    if depth is not None and exits and exits[-1] >= depth:
        raise UsageError(
            f"exit {exits[-1]} was asked for, and {model} has {counted(depth, 'layer')}",
            f"give --exit-layers from 1 to {depth - 1}",
        )


def seconds_of(text: str) -> float:
    """`90s`, `10m`, `1.5h`, or a number of seconds.

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(found[1]) * UNITS[found[2] or "s"] if found is not None else 0.0
    if not 0 < seconds <= LONGEST_BUDGET:
        raise UsageError(f"--budget is {text!r}", "give a time such as 90s, 10m or 1h, 30 days at most")
    return seconds


def exits_of(text: str) -> list[int]:
    """`A:B`, `A:B:STEP`, B among them, or a list.

    Raises:
        UsageError: anything else.
    """
    if ":" not in text:
        return numbers_of(text, "--exit-layers")
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(map(_is_count, parts)):
        raise UsageError(f"--exit-layers is {text!r}", "give A:B:STEP, for example 2:12:2, or a list: 1,2,4")
    first, last, step = (*map(int, parts), 1)[:3]
    if last < first:
        raise UsageError(
            f"--exit-layers is {text!r}, which holds no exit", "give the lower one first, for example 2:12:2"
        )
    exits = range(first, last + 1, step)
    if len(exits) > MOST_EXITS:
        raise UsageError(
            f"--exit-layers is {text!r}, which holds {len(exits):,} exits", "give fewer, for example 2:12:2"
        )
    return list(exits)


def numbers_of(text: str, option: str) -> list[int]:
    """Whole numbers from 1, commas between.

    Raises:
        UsageError: anything else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(map(_is_count, parts)):
        raise UsageError(f"{option} is {text!r}", "give whole numbers from 1, for example 1,2,4")
    return sorted({int(part) for part in parts})


def _is_count(text: str) -> bool:
    """Return whether text is a whole number from 1 that the engine can count to."""
    return re.fullmatch(r"\s*\d{1,10}\s*", text) is not None and 1 <= int(text) <= MOST
