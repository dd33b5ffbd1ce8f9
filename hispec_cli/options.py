"""Groups of options shared by commands, each defined once as a dataclass that commands take as one argument."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hispec.settings import SETTINGS
from hispec_cli import completion
from hispec_cli.ui.console import choose_color
from hispec_cli.ui.theme import Palette


class Format(StrEnum):
    """The format of an answer on stdout."""

    auto = "auto"
    plain = "plain"
    json = "json"
    jsonl = "jsonl"

    @property
    def is_json(self) -> bool:
        """Return whether answers are JSON values."""
        return self in (Format.json, Format.jsonl)


class Color(StrEnum):
    """When to use colour."""

    auto = "auto"
    always = "always"
    never = "never"


_model = partial(typer.Option, rich_help_panel="Model")
message_option = partial(typer.Option, rich_help_panel="Text")
"""Declare an option in the section of the model's input and stop conditions."""
output_option = partial(typer.Option, rich_help_panel="Output")
"""Declare an option in the section of the output and its format."""


def dataset_option(section: Callable[..., Any]) -> Any:
    """Return the option that names a dataset, in a section of the help."""
    told = "A dataset's name, or a JSONL file with prompt or question."
    return section(metavar="NAME|FILE", autocompletion=completion.datasets, help=told)


OF_PROFILE = "the profile's"
"""The default of an option that a profile answers."""


@dataclass(frozen=True)
class CommonOptions:
    """Options of every command."""

    color: Annotated[
        Color,
        typer.Option(
            envvar="HISPEC_COLOR",
            callback=choose_color,
            is_eager=True,
            help="When to use colour; auto does on a terminal, unless NO_COLOR is set.",
        ),
    ] = Color.auto
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False


@dataclass(frozen=True)
class ProfileOptions:
    """Options that choose the model and its exits."""

    profile: Annotated[
        str | None,
        _model(
            metavar="NAME|FILE",
            autocompletion=completion.profiles,
            show_default="HISPEC_PROFILE, else tiny, the shipped model",
            help="Profile: the models, and how to decode with them.",
        ),
    ] = None
    model: Annotated[
        str | None,
        _model(metavar="ID|PATH", help="Model to load without a profile: a hub id, a folder, or a GGUF file."),
    ] = None
    draft_exit: Annotated[
        int | None,
        _model(
            min=1,
            metavar="N",
            show_default=f"{OF_PROFILE}; with --model an eighth of the depth",
            help="Exit layer that drafts.",
        ),
    ] = None
    intermediate_exit: Annotated[
        int | None,
        _model(
            min=1,
            metavar="N",
            show_default=f"{OF_PROFILE}; with --model a quarter of the depth",
            help="Exit layer that verifies drafts before the target.",
        ),
    ] = None
    offline: Annotated[
        bool, _model("--offline", envvar="HISPEC_OFFLINE", help="Do not use the network; the same as HF_HUB_OFFLINE=1.")
    ] = False


@dataclass(frozen=True)
class ModelOptions(ProfileOptions):
    """Options that choose a model and its chat template."""

    chat_template: Annotated[
        Path | None,
        _model(
            metavar="FILE",
            show_default="HISPEC_CHAT_TEMPLATE, the profile's, else the tokenizer's",
            help="File with a Jinja chat template, which replaces the model's.",
        ),
    ] = None
    force: Annotated[bool, _model("--force", help="Load models even if they do not seem to fit the free memory.")] = (
        False
    )


@dataclass(frozen=True)
class GrammarOptions:
    """Options for constrained output; at most one may be given."""

    json_schema: Annotated[
        Path | None, message_option(metavar="FILE", help="Constrain the answer to JSON that this JSON schema accepts.")
    ] = None
    grammar: Annotated[
        Path | None,
        message_option(metavar="FILE", help="Constrain the answer to this grammar, in llguidance's Lark syntax."),
    ] = None
    regex: Annotated[
        str | None,
        message_option(
            metavar="TEXT", help="Constrain the answer to a text that this regular expression matches as a whole."
        ),
    ] = None


@dataclass(frozen=True)
class ViewOptions:
    """The options that say how an answer is shown."""

    format: Annotated[Format, output_option("--format", help="Format of the answer on stdout.")] = Format.auto
    live: Annotated[
        bool | None,
        output_option(
            "--live/--no-live",
            envvar="HISPEC_LIVE",
            help="Show the live view; by default it is shown on a terminal only.",
        ),
    ] = None
    palette: Annotated[Palette, output_option(envvar="HISPEC_PALETTE", help="Colours of the live view.")] = (
        Palette.default
    )


def setting_option(name: str, *, alone: bool = False) -> Any:
    """Return the option of a setting.

    Args:
        name: the name of the setting.
        alone: whether the command resolves no settings, so that the option itself reads the variable.
    """
    setting = SETTINGS[name]
    return typer.Option(
        f"{setting.option}/--no-{name.replace('_', '-')}"
        if setting.kind is bool and setting.nullable
        else setting.option,
        rich_help_panel=None if alone else setting.panel,
        envvar=setting.variable if alone else None,
        metavar=setting.metavar or ("N" if setting.kind is int else None),
        autocompletion=completion.one_of(setting.offers) if setting.offers else None,
        show_default=alone or setting.otherwise or True,
        help=setting.help,
    )


@dataclass(frozen=True)
class Chosen:
    """The settings that a command has options for; the command gets the given ones by name."""

    names: tuple[str, ...]


Asked = dict[str, Any]
AnswerOptions = Annotated[Asked, Chosen(tuple(name for name, setting in SETTINGS.items() if setting.panel))]
"""Options of decoding one answer. The defaults come from HISPEC_* variables, the profile, the checkpoint."""
DecodingOptions = Annotated[
    Asked, Chosen(tuple(name for name, setting in SETTINGS.items() if setting.panel and name != "mode"))
]
"""Options of decoding in several modes."""


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take groups of options: Typer sees each of them, the command gets the groups.

    Args:
        command: a command; some of its parameters are annotated with a dataclass of options, or with `Chosen`.
    """
    hints = get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        chosen = next((found for found in getattr(hint, "__metadata__", ()) if isinstance(found, Chosen)), None)
        if chosen is not None:
            inner = [
                _keyword(name, Annotated[SETTINGS[name].kind | None, setting_option(name)], None)
                for name in chosen.names
            ]
            groups[parameter.name] = _given, [*chosen.names]
        elif isinstance(hint, type) and is_dataclass(hint):
            types = get_type_hints(hint, include_extras=True)
            inner = [_keyword(field.name, types[field.name], field.default) for field in fields(hint)]
            groups[parameter.name] = hint, [field.name for field in fields(hint)]
        else:
            inner = [_keyword(parameter.name, hint, parameter.default)]
        shown += inner

    def expanded(**values: Any) -> Any:
        built = {name: make(**{key: values.pop(key) for key in keys}) for name, (make, keys) in groups.items()}
        return command(**built, **values)

    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    expanded.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return expanded


def _given(**values: Any) -> Asked:
    return {name: value for name, value in values.items() if value is not None}


def _keyword(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
