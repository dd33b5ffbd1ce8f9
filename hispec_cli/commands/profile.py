"""`hispec profile list|show|validate`: what profiles there are, and what they say."""

import os
from typing import Annotated, Any

import typer
import yaml

from hispec_cli.options import CommonOptions, Format, grouped
from hispec_cli.ui.output import write, write_json
from hispec_cli.ui.safe_text import visible

app = typer.Typer(help="List, show and check profiles.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME|PATH", help="A profile's name, or the path of a YAML file.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to write it.")]


@app.command("list")
@grouped
def list_(*, format: FormatOption = Format.auto, common: CommonOptions) -> None:  # noqa: A002
    """List all profiles: the shipped ones and your own."""
    from hispec.errors import ProfileError
    from hispec.profile import list_profiles, read_profile

    rows = []
    for name, path in dict(list_profiles()).items():
        try:
            description = read_profile(path).description
        except ProfileError as error:
            description = f"(broken: {error.cause})"
        rows.append({"name": name, "description": description, "path": str(path)})
    if format in (Format.json, Format.jsonl):
        for record in [rows] if format is Format.json else rows:
            write_json(record)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        write(visible(f"{row['name']:<{width}}  {row['description']}") + "\n")


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
    write(visible(f"{path} is a valid profile") + "\n")
