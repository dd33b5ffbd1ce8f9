"""`hispec fit-exits`: usable exits for a model that was not trained for early exit."""

from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from hispec.budget import Budget
from hispec.errors import UsageError
from hispec.limits import MAX_INT, MAX_SEED
from hispec.settings import Dtype
from hispec_cli.checks import check_model, depth_of, prepare_hub
from hispec_cli.exit_codes import INTERRUPTED
from hispec_cli.help import examples
from hispec_cli.options import CommonOptions, Format, ProfileOptions, grouped, setting_option
from hispec_cli.ui.console import say
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.signals import ctrl_c
from hispec_cli.values import seconds_of

if TYPE_CHECKING:
    from hispec.exits.request import FitRequest

EXAMPLES = examples("hispec fit-exits --model Qwen/Qwen3-0.6B --text corpus.txt --exits 7,14")


@grouped
def fit_exits(
    *,
    model: Annotated[
        str, typer.Option(metavar="ID|PATH", help="Model to fit exits of: a hub id, a folder, or a GGUF file.")
    ],
    text: Annotated[
        Path,
        typer.Option(metavar="FILE", help="UTF-8 text similar to what the model will read and write; 1 MB is enough."),
    ],
    exits: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Exit layers to fit; by default a quarter and half of the depth."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.yaml",
            help="Path of the profile to write; by default MODEL-exits in your folder. Its translators are put next to it.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    steps: Annotated[int, typer.Option(min=1, max=MAX_INT, metavar="N", help="Maximum number of updates.")] = 250,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Time limit, loading included, e.g. 90s, 10m or 1.5h; by default none."),
    ] = None,
    row_tokens: Annotated[
        int,
        typer.Option(
            min=16, max=MAX_INT, metavar="N", help="Number of tokens in a row of text; fewer need less memory."
        ),
    ] = 512,
    batch_tokens: Annotated[
        int, typer.Option(min=16, max=MAX_INT, metavar="N", help="Number of tokens in an update.")
    ] = 4096,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-8, max=1.0, metavar="X", show_default="0.5 over the hidden size", help="Highest learning rate."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of the order of the text.")] = 0,
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub model.")] = None,
    device: Annotated[str, setting_option("device", alone=True)] = "auto",
    dtype: Annotated[Dtype, setting_option("dtype", alone=True)] = "auto",
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", envvar="HISPEC_OFFLINE", help="Do not use the network; the same as HF_HUB_OFFLINE=1."
        ),
    ] = False,
    format: Annotated[Format, typer.Option("--format", help="Format of the result on stdout.")] = Format.auto,  # noqa: A002
    common: CommonOptions,
) -> None:
    """Fit translators for a model's exits on your text, so that they can draft. The weights do not change."""
    limit = Budget() if budget is None else Budget(seconds_of(budget))
    layers = None if exits is None else _layers(exits)
    from hispec.exits.request import FitRequest

    prepare_hub(ProfileOptions(offline=offline))
    request = FitRequest(model, text, layers, out, revision, row_tokens, batch_tokens, device, dtype, force)
    _check(request)
    with Loading("importing torch") as loading:
        from hispec.exits.fit import FitSettings
        from hispec.exits.job import FitJob
        from hispec_cli.ui.fit import show_fit
        from hispec_cli.ui.fit_progress import FitProgress

        loading.now("reading the text")
        job = FitJob(request, FitSettings(steps=steps, learning_rate=learning_rate, seed=seed), limit)
    say(
        f"fitting {' and '.join(f'exit {exit_}' for exit_ in job.exits)} on {job.rows.numel():,} tokens, "
        f"{job.held_out.numel():,} held out"
    )
    progress = FitProgress(steps, limit)
    with Loading("loading the model") as loading:
        stack = job.load(loading.see)
    interrupted = Event()

    def end() -> None:
        interrupted.set()
        progress.say("interrupted: ending with what was found so far; Ctrl-C again ends at once")

    with progress, ctrl_c(end):
        fit = job.run(stack, progress.see, interrupted.is_set)
    job.save(fit)
    show_fit(job, fit, format)
    if fit.ended == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _layers(exits: str) -> list[int]:
    try:
        return [int(layer) for layer in exits.split(",")]
    except ValueError:
        raise UsageError(f"--exits is {exits!r}", "give layers like --exits 4,8") from None


def _check(request: "FitRequest") -> None:
    """Raise for mistakes that files on this machine and the model's configuration show."""
    from hispec.exits.request import exits_to_fit
    from hispec.precedence import resolve_settings
    from hispec.profile import Profile, TargetSection

    check_model(request.model)
    target = TargetSection(model=request.model, revision=request.revision)
    resolve_settings({"device": request.device}, Profile(name=request.model, target=target))
    request.check_files()
    if (depth := depth_of(target)) is not None:
        exits_to_fit(request, depth)
