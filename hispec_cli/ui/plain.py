"""Answers for pipes, files and scripts: validated text as it comes, or JSON."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TextIO

from hispec.events import Committed, Event, Finished, to_record
from hispec_cli.ui.output import write, write_json
from hispec_cli.ui.safe_text import visible


class View(AbstractContextManager["View"]):
    """Shows one answer: entered before the first event, handed every event, left, and finished with the result."""

    draft_text: ClassVar[bool] = False
    """Whether it shows the text of drafts."""

    @property
    def stream(self) -> TextIO:
        """Return where it shows the answer."""
        return sys.stdout

    def see(self, event: Event) -> None:
        """Take one event into account."""

    def sleep(self, seconds: float) -> None:
        """Wait for the next event."""
        time.sleep(seconds)

    def finish(self, result: Any) -> None:
        """End the view of a complete answer; `result` has a `to_record` method."""

    def break_off(self) -> None:
        """End the view of an answer that will not be complete."""

    def __exit__(self, *_: object) -> None:
        pass


class PlainView(View):
    """Streams the validated text. A terminal gets control characters as escapes, a file gets every byte."""

    def __init__(self) -> None:
        self._last = ""
        self._clean: Callable[[str], str] = visible if sys.stdout.isatty() else str

    def see(self, event: Event) -> None:
        """Write what became final."""
        if isinstance(event, Committed) and event.text:
            self._last = event.text
            write(self._clean(event.text))

    def finish(self, result: Any) -> None:
        """End with a line break."""
        if not self._last.endswith("\n"):
            write("\n")

    def break_off(self) -> None:
        """End the view of an answer that will not be complete."""
        if self._last:
            self.finish(None)


class JsonView(View):
    """One object at the end."""

    def finish(self, result: Any) -> None:
        """Write the answer's object."""
        write_json(result.to_record())


class JsonLinesView(View):
    """One event a line, as it happens; the last once all is known about the answer."""

    draft_text = True

    def see(self, event: Event) -> None:
        """Write the event."""
        if isinstance(event, Finished):
            self._finished = event
        else:
            write_json(to_record(event))

    def finish(self, result: Any) -> None:
        """Write the last event."""
        write_json(to_record(self._finished))
