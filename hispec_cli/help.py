"""Formats help pages: options in sections by their panel, and examples as they are typed."""

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from hispec.limits import MAX_INT, MAX_SEED

UNBOUNDED = re.compile(rf"(\d+)<=x<=(?:{MAX_INT}|{MAX_SEED})\b")
"""The upper bound that help pages leave out, since it is only the largest number."""


def examples(*lines: str) -> str:
    """Return command lines as the end of a help page, which is not to wrap them."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def write_parameters(command: Any, context: typer.Context, formatter: Any) -> None:
    """Write arguments, and then options under the name of their panel, in the order in which panels first appear."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            name, told = record
            kind = "Options"
            if parameter.param_type_name == "argument":
                kind, name = "Arguments", parameter.metavar or name
            told = UNBOUNDED.sub(r"x>=\1", told)
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append((name, told))
    last = sections.pop("Options", None)  # options without a panel come last
    for name, records in [*sections.items(), *([("Options", last)] if last else [])]:
        with formatter.section(name):
            formatter.write_dl(records)


class Command(TyperCommand):
    """A command whose options are shown in sections."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, and then options under the name of their panel, in the order in which panels first
        appear.

        See `write_parameters`.
        """
        write_parameters(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands whose own options are shown in sections."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, and then options under the name of their panel, in the order in which panels first
        appear.

        See `write_parameters`.
        """
        write_parameters(self, ctx, formatter)
        self.format_commands(ctx, formatter)
