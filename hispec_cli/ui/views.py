"""Which view an answer gets."""

import os
import stat
import sys
from types import TracebackType
from typing import Any, TextIO

from hispec.errors import UsageError
from hispec.events import Event
from hispec.metrics import Stats
from hispec_cli.options import Format
from hispec_cli.ui.console import say, stderr
from hispec_cli.ui.live import SHARE, LiveView
from hispec_cli.ui.output import write
from hispec_cli.ui.panels import glyphs_for, summary
from hispec_cli.ui.plain import JsonLinesView, JsonView, PlainView, View
from hispec_cli.ui.theme import Palette


def choose_view(
    chosen: Format, live: bool | None, palette: Palette, stats: Stats, share: float = SHARE, *, keep: bool = True
) -> View:
    """The view of a format.

    Args:
        chosen: auto is the live view where that can be, else plain text.
        live: the live view or not; None: where stderr is a terminal and stdout is one or a file. What reads from a
            pipe may itself write to the terminal (`| tee`, `| less`), so there it has to be asked for.
        palette: of the live view.
        stats: empty figures of the hierarchy.
        share: of the time gone by, what drawing may take.
        keep: whether the answer stays on the terminal; without, somebody else writes it there in the end.

    Raises:
        UsageError: see `check_view`.
    """
    check_view(chosen, live)
    if chosen is Format.auto and live is not False and _on_terminal() and (live or not _is_pipe(sys.stdout)):
        return LiveAnswer(palette, stats, share, keep)
    if not keep:
        return View()
    views: dict[Format, type[View]] = {Format.json: JsonView, Format.jsonl: JsonLinesView}
    return views.get(chosen, PlainView)()


def check_view(chosen: Format, live: bool | None) -> None:
    """Refuse a live view where there cannot be one; arguments as `choose_view`.

    Raises:
        UsageError: another format was asked for, or there is no terminal.
    """
    if live and chosen is not Format.auto:
        raise UsageError(f"--live and --format {chosen} exclude each other", "leave out one of them")
    if live and not _on_terminal():
        raise UsageError("--live needs a terminal at standard error", "leave out --live")


def report(stats: Stats) -> None:
    """Say how it went in one line, for a person only."""
    if sys.stderr.isatty():
        say(summary(stats, glyphs_for(sys.stderr.encoding)))


class LiveAnswer(View):
    """The live view on stderr, and the answer on stdout: the same terminal, or something else.

    Args:
        palette: how tokens look.
        stats: empty figures of the hierarchy.
        share: of the time gone by, what drawing may take.
        keep: whether the answer stays.
    """

    draft_text = True

    def __init__(self, palette: Palette, stats: Stats, share: float, keep: bool = True) -> None:
        together = _same_terminal()
        self._plain = PlainView() if keep and not together else View()
        answer = write if together else None
        self.live = LiveView(stderr(), stats, palette, answer=answer if keep else _nowhere, share=share)

    @property
    def stream(self) -> TextIO:
        """The terminal."""
        return sys.stderr

    def __enter__(self) -> "LiveAnswer":
        self.live.__enter__()
        return self

    def see(self, event: Event) -> None:
        """Write what became final, show what did not."""
        self._plain.see(event)
        self.live.see(event)

    def sleep(self, seconds: float) -> None:
        """Wait, but not without showing what has been seen."""
        self.live.sleep(seconds)

    def finish(self, result: Any) -> None:
        """End the answer."""
        self._plain.finish(result)

    def break_off(self) -> None:
        """The answer will not be complete."""
        self._plain.break_off()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.live.close()


def _nowhere(_: str) -> None:
    """Lets rows leave the view without a trace."""


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _same_terminal() -> bool:
    return sys.stdout.isatty() and os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())


def _is_pipe(stream: Any) -> bool:
    mode = os.fstat(stream.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
