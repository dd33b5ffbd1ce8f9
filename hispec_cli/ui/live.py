"""The live view's terminal: finished rows go to the scrollback, a tail of at most 12 rows is drawn again and again.

When it draws. The engine is a generator: while a listener has an event, the engine stands still, and its clock, which
every `seconds` field comes from, runs only inside a step. The view draws only when it is handed an event, in the same
thread, so drawing is never inside a timed step and never competes with one; it costs wall-clock time only. That
is bounded too: events are collected, which costs well under a microsecond each, and reduced and drawn together, at
most ten times a second and only while all drawing so far is below a hundredth of the time gone by.
`benchmarks/view.py` measures what is left.

The terminal itself wraps the text that stays in the scrollback, at spaces: a row is filled up to the last column, so
that the next one continues it, and a paragraph that is copied has no other line breaks than its own.

Between frames the cursor rests, hidden, at the tail's first cell. So the tail is erased by "erase to the end of the
screen" in any state of its rows, which makes resizing safe; the size is queried again for every frame. The terminal
cuts rows of the tail, and does not wrap them, in case it has shrunk in the meantime.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.segment import Segment, Segments

from hispec.events import Event, Finished
from hispec.metrics import Stats
from hispec_cli.ui.console import breaking_width
from hispec_cli.ui.panels import (
    Line,
    Row,
    Span,
    figures_row,
    glyphs_for,
    lines_of,
    panel,
    printable,
    rows_for_terminal,
    stream_row,
    stream_runs,
    wrap,
)
from hispec_cli.ui.signals import end_on_request, stop
from hispec_cli.ui.state import TokenStatus, ViewState, reduce
from hispec_cli.ui.theme import Palette, styles_of

TAIL_ROWS = 12
INTERVAL = 0.1
"""Seconds between two frames, at least."""
SHARE = 0.01
"""The largest share of the time that drawing may take."""

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_ERASE = "\r \x1b[J\r"
"""The code that erases the tail. From the first cell of the screen on, tmux would keep erased text in its
scrollback.
"""
_ROW_ABOVE = "\x1b[A"
_CUT_ROWS, _WRAP_ROWS = "\x1b[?7l", "\x1b[?7h"


class LiveView:
    """Shows one answer while it is written; a context manager that is handed every event.

    Args:
        screen: a console on the terminal.
        stats: empty statistics of the hierarchy, whose levels it shows.
        palette: the styles of token standings.
        answer: writes the rows of the validated text; by default they go to the screen. To be given where the
            answer's stream is the same terminal.
        share: the largest share of the time that drawing may take.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        screen: Console,
        stats: Stats,
        palette: Palette = Palette.default,
        *,
        answer: Callable[[str], None] | None = None,
        share: float = SHARE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.state = ViewState(stats)
        self._screen, self._styles = screen, styles_of(palette)
        self._answer = answer or self._write
        self._share, self._clock = share, clock
        self._glyphs = glyphs_for(screen.encoding)
        self._events: list[Event] = []
        self._settled = 0
        """Characters of the state's settled text that have been taken over into `_pending` or further."""
        self._pending = ""
        """Settled text that is not in the scrollback yet, with its styles."""
        self._printed = False
        self._unfinished: tuple[Line, ConsoleDimensions] | None = None
        """The row above the tail, if its paragraph continues, and the terminal's size when it was printed. It is
        printed again with what follows: if the tail were part of its paragraph, resizing the window would move both.
        """
        self._tail_rows = 0
        """Rows of the stream in the tail; they never become fewer, or the panel would jump."""
        self._spent = 0.0
        self._open = False
        self._handlers: dict[signal.Signals, Any] = {}

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """Show events and pass them on."""
        with self:
            for event in events:
                self.see(event)
                yield event

    def __enter__(self) -> "LiveView":
        if self._screen.file.isatty():
            for number, handler in ((signal.SIGTSTP, self._suspend), (signal.SIGTERM, end_on_request)):
                self._handlers[number] = signal.signal(number, handler)
        self._open = True
        self._started = self._clock()
        self._draw_rows([figures_row(self.state, self._screen.width, self._glyphs)])
        self._drawn(self._started)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def see(self, event: Event) -> None:
        """Take one event into account, and draw if it is time to."""
        self._events.append(event)
        if isinstance(event, Finished):
            self.close()
        elif (now := self._clock()) >= self._next:
            self.draw()
            self._drawn(now)

    def sleep(self, seconds: float) -> None:
        """Wait, after showing all events so far."""
        due = self._clock() + seconds
        if self._events and self._open:
            time.sleep(max(0.0, min(self._next, due) - self._clock()))
            self.draw()
            self._drawn(self._clock())
        time.sleep(max(0.0, due - self._clock()))

    def close(self) -> None:
        """Leave the validated text in the scrollback, nothing else, and the terminal as it was."""
        if not self._open:
            return
        self._open = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._reduce()
        rest = self._pending + printable(self.state.validated[self._settled :])
        width = self._screen.width
        self._write(_ERASE + _SHOW_CURSOR)
        if rest:
            rest = rest.removesuffix("\n")
            self._print(lines_of(rest, wrap(rest, width)))
        elif self.state.finish_reason is not None and not self._printed:
            self._answer("\n")

    def draw(self) -> None:
        """Draw a frame of all events so far."""
        self._reduce()
        width, height = self._screen.size
        rows = max(1, min(TAIL_ROWS, height - 1))
        below = panel(self.state, width, self._styles, self._glyphs)
        if len(below) > rows - 2:
            below = below[-1:] if rows > 2 else []
        room = rows - len(below)
        text, ends = self._pending, [(len(self._pending), TokenStatus.validated)]
        for piece, status in stream_runs(self.state, self._glyphs):
            text += piece
            ends.append((len(text), status))
        spans = list(wrap(text, width))
        spans = spans[self._release(text, spans, len(spans) - room) :][-room:]
        self._tail_rows = min(max(self._tail_rows, len(spans)), room)
        stream = [stream_row(text, span, ends, self._styles) for span in spans]
        stream += [[]] * (self._tail_rows - len(stream))
        self._draw_rows(stream + below)

    def _reduce(self) -> None:
        self.state, self._events = reduce(self.state, *self._events), []
        self._pending += printable(self.state.settled[self._settled :])
        self._settled = len(self.state.settled)

    def _release(self, text: str, spans: list[Span], count: int) -> int:
        """Move the first `count` rows to the scrollback, as far as they are settled, and return how many were moved."""
        count = sum(span.following <= len(self._pending) for span in spans[: max(count, 0)])
        if count:
            self._write(_ERASE)
            self._print(lines_of(text, spans[:count]))
            self._pending = self._pending[spans[count - 1].following :]
            self._printed = True
        return count

    def _print(self, lines: list[Line]) -> None:
        """Print rows in place of the tail, as the continuation of the row above if that one continues."""
        width, size = breaking_width(self._screen), self._screen.size
        above = ""
        if self._unfinished is not None and width is not None and self._unfinished[1] == size:
            lines, above = [self._unfinished[0], *lines], _ROW_ABOVE
        self._answer(above + rows_for_terminal(lines, width))
        last = lines[-1]
        goes_on = last.gap != "\n" and last.certain and size.height > 1  # else the row above is not on the screen
        self._unfinished = (last, size) if goes_on else None

    def _draw_rows(self, rows: list[Row]) -> None:
        """Draw the tail where the cursor is, and return there."""
        segments = [segment for row in rows for segment in (*row, Segment.line())][:-1]
        with self._screen.capture() as capture:
            self._screen.print(Segments(segments), end="", soft_wrap=True)
        up = f"\x1b[{len(rows) - 1}A" if len(rows) > 1 else ""
        self._write(f"{_HIDE_CURSOR}{_ERASE}{_CUT_ROWS}{capture.get()}{_WRAP_ROWS}\r{up}")

    def _drawn(self, began: float) -> None:
        now = self._clock()
        self._spent += now - began
        self._next = max(now + INTERVAL, self._started + (self._spent + now - began) / self._share)

    def _write(self, text: str) -> None:
        file = self._screen.file
        with suppress(OSError):  # the terminal is gone, but the answer may still have a reader
            file.write(text.encode(self._screen.encoding, "backslashreplace").decode(self._screen.encoding))
            file.flush()

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Stop on Ctrl-Z with the terminal as it was, and continue at the next frame once resumed."""
        self._write(_ERASE + _SHOW_CURSOR)
        self._unfinished = None
        before = self._handlers[signal.Signals(number)]
        if callable(before):  # it has something to hand back too
            before(number, frame)
            return
        stop(number)
