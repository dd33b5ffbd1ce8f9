"""The request for a calibration, checked before torch is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hispec.budget import Budget
from hispec.counts import counted
from hispec.datasets import Loaded, load
from hispec.errors import UsageError
from hispec_cli.checks import YAML, Choice, choose, depth_of, is_dummy
from hispec_cli.commands.calibrate.options import FEWEST_PROMPTS, LoadingOptions, SearchOptions
from hispec_cli.options import ModelOptions
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.report.files import check_output
from hispec_cli.values import exits_of, numbers_of, seconds_of


@dataclass(frozen=True)
class CalibrateRequest:
    """A calibration that can begin.

    Attributes:
        choice: the model, and how to decode.
        search: the options of the search.
        budget: the time it may take, running.
        exits: the exits to consider, ascending; empty for the defaults.
        periods: the validation periods to consider, ascending; empty for the defaults.
        rows: the prompts.
        profile: the path of the new profile.
        report: the path of the page with charts, None for no page.
    """

    choice: Choice
    search: SearchOptions
    budget: Budget
    exits: Sequence[int]
    periods: Sequence[int]
    rows: Loaded
    profile: Path
    report: Path | None


def prepare(
    model: ModelOptions, search: SearchOptions, loading: LoadingOptions, profile: Path | None, report: Path | None
) -> CalibrateRequest:
    """Check everything that is known before the model is loaded, and read the dataset.

    Args:
        model: the model options.
        search: the search options.
        loading: the options of loading weights.
        profile: the path of the new profile; None derives it from the name of the profile that is calibrated.
        report: the path of the page with charts.

    Raises:
        UsageError: an option, profile or dataset that cannot be.
        UnavailableError: a package or dataset is not available.
    """
    budget = Budget(seconds_of(search.budget))
    exits = exits_of(search.exit_layers) if search.exit_layers else []
    periods = numbers_of(search.periods, "--periods") if search.periods else []
    for path, endings in ((profile, YAML), (report, (".html",))):
        if path is not None:
            check_output(path, endings)
    choice = choose(model, loading)
    target = choice.profile.target
    check_exit_layers(exits, target.model, depth_of(target, dummy=is_dummy(choice.decoding)))
    if profile is None:
        profile = Path(f"{choice.profile.name.replace('/', '-')}-calibrated.yaml")
        check_output(profile, YAML)
    with Loading(f"reading the dataset {search.dataset}"):
        rows = load(search.dataset, format_as=search.format_as, limit=search.limit, offline=model.offline)
    if len(rows.rows) < FEWEST_PROMPTS:
        raise UsageError(
            f"{search.dataset} has {counted(len(rows.rows), 'prompt')}, too few to calibrate on",
            f"give a file of at least {FEWEST_PROMPTS}, or another dataset",
        )
    return CalibrateRequest(choice, search, budget, exits, periods, rows, profile, report)


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
