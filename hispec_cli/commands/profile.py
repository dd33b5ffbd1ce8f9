"""`hispec profile list|show|validate`: what profiles there are, and what they say."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from hispec.errors import UsageError
from hispec_cli.options import CommonOptions, Format, grouped
from hispec_cli.ui.console import say
from hispec_cli.ui.output import write, write_json
from hispec_cli.ui.safe_text import visible

if TYPE_CHECKING:
    from hispec.machine import Device
    from hispec.profile import Profile

app = typer.Typer(help="List, show and check profiles.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME|PATH", help="A profile's name, or the path of a YAML file.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to write it.")]


@app.command("list")
@grouped
def list_(*, format: FormatOption = Format.auto, common: CommonOptions) -> None:  # noqa: A002
    """List all profiles, the shipped ones and your own, and whether the memory that is free now would hold them."""
    from hispec.errors import ProfileError
    from hispec.memory import gigabytes
    from hispec.profile import list_profiles, read_profile

    rows: list[dict[str, Any]] = []
    places: dict[str, Device | None] = {}
    for name, path in dict(list_profiles()).items():
        row: dict[str, Any] = dict.fromkeys(("fits", "needed_bytes", "free_bytes", "device"))
        try:
            profile = read_profile(path)
            row |= {"description": profile.description} | _fit(profile, places)
        except ProfileError as error:
            row["description"] = f"(broken: {error.cause})"
        rows.append({"name": name, **row, "path": str(path)})
    if format in (Format.json, Format.jsonl):
        for record in [rows] if format is Format.json else rows:
            write_json(record)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        fits = {True: "fits", False: "too large", None: "unknown"}[row["fits"]]
        size = gigabytes(row["needed_bytes"]) if row["needed_bytes"] is not None else ""
        write(visible(f"{row['name']:<{width}}  {fits:<9}  {size:>9}  {row['description']}") + "\n")
    for place in places.values():
        if place is not None and sys.stderr.isatty():
            say(f"{gigabytes(place.free)} free on {place.name}; what is in the way: hispec doctor --profile NAME")


def _fit(profile: "Profile", places: dict[str, "Device | None"]) -> dict[str, Any]:
    """Whether a profile fits the device that it would be decoded on, as far as that is known without the network."""
    from hispec.machine import device_named
    from hispec.memory import estimate
    from hispec.settings import resolve_settings

    try:
        settings, _ = resolve_settings({}, profile, environ=os.environ)
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
    origin: Annotated[bool, typer.Option("--origin", help="Say where each decoding value comes from.")] = False,
    format: FormatOption = Format.auto,  # noqa: A002
    common: CommonOptions,
) -> None:
    """Show a profile and the decoding values in force with it."""
    from hispec.models.metadata import read_generation_config
    from hispec.profile import load_profile
    from hispec.settings import resolve_settings

    profile = load_profile(name)
    settings, origins = resolve_settings(
        {}, profile, environ=os.environ, generation_config=read_generation_config(profile.target)
    )
    record: dict[str, Any] = profile.model_dump(by_alias=True, exclude_none=True)
    record |= {"decoding": settings.model_dump()}
    if format in (Format.json, Format.jsonl):
        write_json(record | ({"origin": origins} if origin else {}))
        return
    section = ""
    for line in yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=100).splitlines():
        key = line.strip().partition(":")[0]
        section = key if not line.startswith(" ") else section
        explained = origin and section == "decoding" and key in origins
        write(visible(f"{line:<32}# {origins[key]}" if explained else line) + "\n")


@app.command()
@grouped
def validate(*, name: Name, common: CommonOptions) -> None:
    """Check a profile; exits 2 and says what is wrong where it is."""
    from hispec.models.metadata import read_depth
    from hispec.profile import check_depths, find_profile, read_profile
    from hispec.settings import resolve_settings

    path = find_profile(name)
    profile = read_profile(path)
    resolve_settings({}, profile)
    if (depth := read_depth(profile.target)) is not None:
        check_depths(profile, profile.target.model, depth)
    if profile.translators is not None:
        from hispec.levels import open_translators  # takes seconds: torch

        open_translators(profile)
    write(visible(f"{path} is a valid profile") + "\n")
