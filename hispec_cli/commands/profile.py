"""The commands `hispec profile list|show|new|validate`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hispec.errors import UsageError
from hispec_cli.checks import default_profile, prepare_hub, resolve
from hispec_cli.checks import load_named as load
from hispec_cli.options import CommonOptions, Format, ProfileOptions, grouped
from hispec_cli.ui.console import say
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.output import write, write_json, write_records, write_table
from hispec_cli.ui.safe_text import visible

if TYPE_CHECKING:
    from hispec.machine import Device
    from hispec.profile import Profile

app = typer.Typer(help="List, show, create and check profiles.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME|PATH", help="Name of a profile, or path of a YAML file.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Format of the output.")]


@app.command("list")
@grouped
def list_(*, format: FormatOption = Format.auto, common: CommonOptions) -> None:  # noqa: A002
    """List all profiles, shipped and your own, whether they are downloaded, and whether they fit the free memory."""
    rows = _rows()
    if format.is_json:
        write_records(rows, lines=format is Format.jsonl)
        return
    from hispec.memory import gigabytes

    table = [("NAME", "FROM", "WEIGHTS", "MEMORY", "NEEDED", "DESCRIPTION")]
    for row in rows:
        origin = "yours" if row["own"] else "shipped"
        size = gigabytes(row["needed_bytes"]) if row["needed_bytes"] is not None else ""
        table.append(
            (
                row["name"],
                origin + ", replaces shipped" * row["shadows"] + ", default" * row["default"],
                {True: "here", False: "not here", None: "unknown"}[row["downloaded"]],
                {True: "fits", False: "too large", None: "unknown"}[row["fits"]],
                size,
                row["description"],
            )
        )
    write_table(table, right=[4])
    for device, free in dict.fromkeys((row["device"], row["free_bytes"]) for row in rows):
        if device is not None and sys.stderr.isatty():
            say(f"{gigabytes(free)} free on {device}; reasons: hispec doctor --profile NAME")


def _rows() -> list[dict[str, Any]]:
    """Return the entries of the list, as JSON values."""
    from hispec.errors import ProfileError
    from hispec.profile import is_own, list_profiles, read_profile, shadows

    rows: list[dict[str, Any]] = []
    places: dict[str, Device | None] = {}
    for name, path in dict(list_profiles()).items():
        row: dict[str, Any] = dict.fromkeys(("downloaded", "fits", "needed_bytes", "free_bytes", "device"))
        try:
            profile = read_profile(path)
            row |= {"description": profile.description, "downloaded": _downloaded(profile)} | _fit(profile, places)
        except ProfileError as error:
            row["description"] = f"(broken: {error.message})"
        marks = {"own": is_own(path), "shadows": shadows(path), "default": name == default_profile()}
        rows.append({"name": name, **row, **marks, "path": str(path)})
    return rows


def _downloaded(profile: "Profile") -> bool:
    """Return whether the weights of all models of a profile are on this machine."""
    from hispec.models.checkpoint import checkpoints_of

    return all(checkpoint.tensors_here() is not None for checkpoint in checkpoints_of(profile, "hispec").values())


def _fit(profile: "Profile", places: dict[str, "Device | None"]) -> dict[str, Any]:
    """Return whether a profile fits the device that it would be decoded on, as far as that is known without the network."""
    from hispec.machine import device_named
    from hispec.memory import estimate

    try:
        settings, _ = resolve(profile, {})
    except UsageError:
        return {}
    if settings.device not in places:
        places[settings.device] = device_named(settings.device)
    need, place = estimate(profile, settings), places[settings.device]
    return {
        "fits": need.total <= place.free if need and place else None,
        "needed_bytes": need.total if need else None,
        "free_bytes": place.free if place else None,
        "device": place.name if place else None,
    }


@app.command()
@grouped
def show(
    *,
    name: Name,
    origin: Annotated[bool, typer.Option("--origin", help="Print the source of each decoding setting.")] = False,
    format: FormatOption = Format.auto,  # noqa: A002
    common: CommonOptions,
) -> None:
    """Print a profile as YAML, followed by the resolved decoding settings as comments."""
    profile = load(name)
    settings, origins = resolve(profile, {})
    held = _held(profile, settings.quantization)
    if format.is_json:
        record: dict[str, Any] = profile.model_dump(by_alias=True, exclude_none=True)
        record |= {"decoding": settings.to_record()} | ({"gguf": held} if held else {})
        write_json(record | ({"origin": origins} if origin else {}))
        return
    write(_safe_yaml(profile))
    write("\n# In force with it, options apart:\n")
    for key, value in settings.to_record().items():
        line = f"#   {key}: {json.dumps(value)}"
        write(visible(f"{line:<36}# {origins[key]}" if origin else line) + "\n")
    for model, of in held.items():
        kinds = ", ".join(f"{count} x {kind}" for kind, count in of["gguf"].items())
        packed = f"{', '.join(of['packed'])} packed, the others dequantized" if of["packed"] else "all dequantized"
        write(visible(f"\n# {model} holds {kinds}: {packed}") + "\n")


def _held(profile: "Profile", quantization: str) -> dict[str, dict[str, Any]]:
    """Return the tensor types in the GGUF files of a profile, by model; see `Checkpoint.held`."""
    from hispec.models.checkpoint import checkpoints_of

    found = {name: checkpoint.held(quantization) for name, checkpoint in checkpoints_of(profile, "hispec").items()}
    return {name: held for name, held in found.items() if held is not None}


@app.command()
@grouped
def new(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new profile.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="PROFILE", help="Name or path of the profile to copy; by default the default profile."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace your existing profile of this name.")] = False,
    common: CommonOptions,
) -> None:
    """Create a profile of your own as a copy of another one, comments included."""
    from hispec.own_profiles import copy_text, save_own
    from hispec.profile import find_profile, shadows

    begun_with = source or default_profile()
    path = save_own(name, copy_text(find_profile(begun_with), name), force=force)
    write(visible(str(path)) + "\n")
    say(f"copied from {begun_with}; edit it, then: hispec profile validate {name}, hispec generate --profile {name}")
    if shadows(path):
        say(f"it replaces the shipped profile {name}; remove the file to have that one back", "yellow")


@app.command()
@grouped
def validate(*, name: Name, common: CommonOptions) -> None:
    """Check a profile and the files on this machine that it needs, and report each mistake. Loads no weights."""
    prepare_hub(ProfileOptions(offline=True))
    from hispec.profile import find_profile
    from hispec.validation import check_at_hand

    path = find_profile(name)
    profile = load(name)
    with Loading("checking"):
        absent = check_at_hand(profile)
    write(visible(f"{path} is a valid profile") + "\n")
    if absent:
        say(f"not on this machine, and therefore not checked: {', '.join(absent)}")


def _safe_yaml(profile: "Profile") -> str:
    """Return a profile as YAML without characters that a terminal obeys."""
    from hispec.profile import to_yaml

    text = to_yaml(profile)
    return text if visible(text) == text else to_yaml(profile, unicode=False)
