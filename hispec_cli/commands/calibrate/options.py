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
    """The options that say what is looked at."""

    budget: Annotated[str, _search(metavar="TIME", help="Time to take, loading included, e.g. 90s, 10m or 1h.")] = "10m"
    exit_layers: Annotated[
        str | None,
        _search(metavar="A:B:STEP", help="Exits to look at, B among them; or a list: 1,2,4. Some by default."),
    ] = None
    periods: Annotated[
        str | None,
        _search(
            metavar="A,B,...", help="Tokens at which the target validates; up to 8 of them also at which to verify."
        ),
    ] = None
    dataset: Annotated[str, dataset_option(_search)] = "sample"
    format_as: Annotated[
        str | None,
        _search(metavar="NAME", autocompletion=formats, help="Read the file as this dataset's: its prompts."),
    ] = None
    limit: Annotated[
        int,
        _search(
            min=FEWEST_PROMPTS, max=MAX_INT, metavar="N", help="Prompts to take; a third of them is only checked with."
        ),
    ] = 90
    max_new_tokens: Annotated[
        int | None, _search(min=2, max=MAX_INT, metavar="N", help="Most tokens of an answer.")
    ] = None
    seed: Annotated[int, _search(min=0, max=MAX_SEED, metavar="N", help="Of all that is drawn.")] = 0


LoadingOptions = Annotated[Asked, Chosen(("device", "dtype", "stack"))]
"""How weights are loaded."""
