"""A progress line until a command can begin: the current step, and how many bytes are downloaded or read.

On a terminal it is one line with a spinner, which disappears at the end; keys that are pressed are not echoed into it.
Elsewhere it prints single plain lines, for steps that take long and for downloads.
"""

import sys
from contextlib import ExitStack
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Self

from rich.progress import Progress as Line
from rich.progress import ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from hispec.launched import is_first
from hispec_cli.ui.console import say, stderr
from hispec_cli.ui.progress import LineTimer
from hispec_cli.ui.typeahead import typeahead_kept

if TYPE_CHECKING:
    from hispec.progress import Progress

FRAME_S, TICK_S = 0.1, 1.0
"""The seconds between two frames on a terminal, and between two checks elsewhere."""
SHORT_S = 10.0
"""The seconds below which a step gets no plain line."""
ROOMY = 60
"""Columns from which there is room for a bar and a clock."""
DOING = {"downloading": "downloading", "reading": "reading", "quantizing": "reading and quantizing"}


class _Bar(ProgressColumn):
    """A bar, where it is known how much there is."""

    def render(self, task: Task) -> ProgressBar | Text:
        """Return the object that is drawn for a task."""
        return Text() if task.total is None else ProgressBar(task.total, task.completed, width=20)


class Loading:
    """Shows the current step within the context.

    Args:
        doing: the description of the work until progress gives another.
    """

    def __init__(self, doing: str) -> None:
        self._quiet = not is_first()
        self._ended, self._lock = Event(), Lock()
        self._ticker = Thread(target=self._tick, daemon=True)
        self._line: Line | None = None
        self._terminal = ExitStack()
        self._progress: Progress | None = None
        self._begin(doing)

    def __enter__(self) -> Self:
        if self._quiet:
            return self
        if _draws():
            console = stderr(steady=True)
            wide = console.width >= ROOMY
            self._line = Line(
                SpinnerColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
                *([_Bar()] if wide else ()),
                TextColumn("{task.fields[amount]}", markup=False, table_column=Column(no_wrap=True)),
                *([TimeElapsedColumn()] if wide else ()),
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
            )
            self._task = self._line.add_task(self._doing, total=None, amount="")
            self._terminal.enter_context(typeahead_kept(sys.stdin))
            self._line.start()
            self._line.refresh()
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._line is not None:
            self._line.stop()
        self._terminal.close()

    def see(self, progress: "Progress") -> None:
        """Take news into account: bytes downloaded or read."""
        doing = f"{DOING[progress.doing]} {progress.what.rstrip('/').rpartition('/')[2]}"
        if doing != self._doing:
            self._begin(doing)
            if progress.doing == "downloading" and self._line is None and not self._quiet:
                say(f"{doing}, {_shown(progress.size)}")
                self._short_s = 0.0  # downloads are always reported
        self._progress = progress
        if self._line is not None:
            amount = f"{_shown(progress.done)} of {_shown(progress.size)}"
            self._line.update(
                self._task, description=doing, total=max(progress.size, 1), completed=progress.done, amount=amount
            )
        elif not self._quiet:
            self._tell()

    def now(self, doing: str) -> None:
        """Show that something else is under way."""
        self._begin(doing)
        if self._line is not None:
            self._line.update(self._task, description=doing, total=None, amount="")

    def hold(self, doing: str) -> None:
        """Show a step without animation, since it measures time and drawing would disturb it."""
        self._stop()
        self.now(doing)
        if self._line is not None:
            self._line.refresh()

    def _begin(self, doing: str) -> None:
        self._doing, self._progress, self._short_s = doing, None, SHORT_S
        self._began, self._line_timer = monotonic(), LineTimer()

    def _stop(self) -> None:
        self._ended.set()
        if self._ticker.is_alive():
            self._ticker.join()

    def _tick(self) -> None:
        while not self._ended.wait(TICK_S if self._line is None else FRAME_S):
            if self._line is None:
                self._tell()
            else:
                self._line.refresh()

    def _tell(self) -> None:
        """Say how far it is, if that is due."""
        with self._lock:
            progress, seconds = self._progress, monotonic() - self._began
            if progress is None:
                if self._line_timer.due():
                    say(f"still {self._doing}, for {seconds:.0f} s")
            elif self._line_timer.due(progress.done / max(progress.size, 1) if seconds >= self._short_s else 0.0):
                of = f"{_shown(progress.done)} of {_shown(progress.size)}"
                say(f"downloaded {of}" if progress.doing == "downloading" else f"{self._doing}: {of}")


def _draws() -> bool:
    """Return whether stderr is a terminal on which a line can be drawn over."""
    console = stderr()
    return sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal


def _shown(size: int) -> str:
    """Return bytes as the hub shows them, in thousands."""
    if size < 1000:
        return f"{size} B"
    power = min(4, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:.1f} {'kMGT'[power - 1]}B"
