"""The options of `hispec calibrate`."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from hispec.limits import MAX_INT, MAX_SEED
from hispec_cli.completion import formats
from hispec_cli.options import Asked, Chosen, dataset_option

FEWEST_PROMPTS = 6
"""Two thirds of them to calibrate on, a third to check with."""

_search = partial(typer.Option, rich_help_panel="Search")


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search."""

    budget: Annotated[str, _search(metavar="TIME", help="Time limit, loading included, e.g. 90s, 10m or 1h.")] = "10m"
    exit_layers: Annotated[
        str | None,
        _search(
            metavar="A:B:STEP",
            help="Exits to consider: a range, B included, or a list such as 1,2,4. By default a selection.",
        ),
    ] = None
    periods: Annotated[
        str | None,
        _search(
            metavar="A,B,...",
            help="Waiting tokens at which the target verifies; up to 8 of them are also tried as draft lengths.",
        ),
    ] = None
    dataset: Annotated[str, dataset_option(_search)] = "sample"
    format_as: Annotated[
        str | None,
        _search(
            metavar="NAME", autocompletion=formats, help="Read the file in this dataset's format, with its prompts."
        ),
    ] = None
    limit: Annotated[
        int,
        _search(
            min=FEWEST_PROMPTS,
            max=MAX_INT,
            metavar="N",
            help="Number of prompts; a third of them is kept for the final check.",
        ),
    ] = 90
    max_new_tokens: Annotated[
        int | None, _search(min=2, max=MAX_INT, metavar="N", help="Maximum number of tokens in an answer.")
    ] = None
    seed: Annotated[int, _search(min=0, max=MAX_SEED, metavar="N", help="Seed of all random choices.")] = 0


LoadingOptions = Annotated[Asked, Chosen(("device", "dtype", "stack"))]
"""Options of loading weights."""
