"""Answers for pipes, files and scripts: validated text as it comes, or JSON."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from hispec.events import Committed, Event, to_record
from hispec_cli.options import Format
from hispec_cli.ui.output import write, write_json
from hispec_cli.ui.safe_text import visible

if TYPE_CHECKING:
    from hispec.api import Generation


class PlainView:
    """Streams the validated text. A terminal gets control characters as escapes, a file gets every byte."""

    def __init__(self) -> None:
        self._last = ""
        self._clean: Callable[[str], str] = visible if sys.stdout.isatty() else str

    def see(self, event: Event) -> None:
        """Write what became final."""
        if isinstance(event, Committed) and event.text:
            self._last = event.text
            write(self._clean(event.text))

    def finish(self, generation: "Generation") -> None:
        """End with a line break."""
        if not self._last.endswith("\n"):
            write("\n")


class JsonView:
    """One object at the end."""

    def see(self, event: Event) -> None:
        """Nothing is written before the end."""

    def finish(self, generation: "Generation") -> None:
        """Write the answer's object."""
        write_json(generation.to_record())


class JsonLinesView:
    """One event a line, as it happens."""

    def see(self, event: Event) -> None:
        """Write the event."""
        write_json(to_record(event))

    def finish(self, generation: "Generation") -> None:
        """The last event was the answer."""


View = PlainView | JsonView | JsonLinesView


def view_for(chosen: Format) -> View:
    """The view of a format; auto is plain text."""
    views: dict[Format, type[View]] = {Format.json: JsonView, Format.jsonl: JsonLinesView}
    return views.get(chosen, PlainView)()
