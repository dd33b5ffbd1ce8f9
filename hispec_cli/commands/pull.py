"""`hispec pull`: download a model, once it is known that it will run here."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from hispec.errors import UsageError
from hispec_cli.checks import ask_for_depth, choose_profile, prepare_hub, resolve
from hispec_cli.completion import profiles
from hispec_cli.help import examples
from hispec_cli.options import Asked, Chosen, CommonOptions, ProfileOptions, grouped
from hispec_cli.ui.console import say
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.output import write

if TYPE_CHECKING:
    from hispec.doctor import DoctorVerdict
    from hispec.loading import Plan
    from hispec.profile import Profile
    from hispec.settings import Settings

EXAMPLES = examples("hispec pull HuggingFaceTB/SmolLM2-135M-Instruct", "hispec pull qwen3-8b")


@grouped
def pull(
    *,
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID|PROFILE",
            autocompletion=profiles,
            help="Model to download: a hub id, ORG/NAME:FILE.gguf for a GGUF file, or the name of a profile.",
        ),
    ],
    decoding: Annotated[Asked, Chosen(("device", "dtype"))],
    force: Annotated[
        bool, typer.Option("--force", help="Download a model even if it does not seem to fit this machine.")
    ] = False,
    common: CommonOptions,
) -> None:
    """Download a model, after the checks of `hispec doctor`. Prints its folder, and suggests what to type next."""
    from hispec.profile import list_profiles

    known = name in dict(list_profiles())
    model = ProfileOptions(profile=name) if known else ProfileOptions(model=name)
    prepare_hub(model)
    profile = choose_profile(model, find_depth=ask_for_depth)
    settings, origins = resolve(profile, decoding)
    if settings.load_format == "dummy":
        raise UsageError("random weights are not downloaded", "unset HISPEC_LOAD_FORMAT")
    if not force:
        examine(profile, settings)
    with Loading(f"opening {profile.name}") as loading:
        from hispec.loading import fetch, make_plan

        plan = make_plan(profile, settings, origins, force=force)
        fetch(plan, loading.see)
    tell_next(plan, f"{'--profile' if known else '--model'} {shlex.quote(name)}")


def examine(profile: "Profile", settings: "Settings") -> None:
    """Show what doctor finds of a profile.

    Raises:
        HispecError: the first reason for which it cannot run.
    """
    with Loading("examining this machine") as loading:
        from hispec.doctor import examine_machine, examine_profile

        machine = examine_machine()
        loading.now(f"examining {profile.name}")
        verdict: DoctorVerdict = examine_profile(profile, settings, machine)
    from hispec_cli.ui.doctor import verdict_lines

    if verdict.problems:
        raise verdict.problems[0]
    say("\n".join(verdict_lines(verdict)).strip())


def tell_next(plan: "Plan", option: str) -> None:
    """Print the path of the target's folder on stdout, and suggest commands on stderr."""
    target = plan.target
    path = target.here(target.gguf_file or target.config_file)
    if path is not None:
        write(f"{path if target.gguf_file else path.parent}\n")
    talks = plan.profile.chat_template or plan.tokenizer.chat_template
    say("all files are on this machine; continue with:", "none")
    for command in ('generate "..."', *(("chat", "serve") if talks else ("serve",))):
        say(f"  hispec {command} {option}", "none")
