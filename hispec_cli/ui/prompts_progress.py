"""The progress of a file of prompts: one line that is redrawn on a terminal, single plain lines elsewhere."""

from time import monotonic
from typing import Any

from rich.live import Live
from rich.text import Text

from hispec.counts import counted
from hispec_cli.ui.console import say, stderr
from hispec_cli.ui.progress import Display, LineTimer, time_left


class PromptsProgress(Display):
    """Counts prompts, failures and tokens.

    Args:
        total: prompts in all.
        known: the number of lines that an earlier run answered.
    """

    def __init__(self, total: int, known: int) -> None:
        self._total, self._known = total, known
        self._done = self._failed = self._tokens = 0
        self._began, self._line_timer = monotonic(), LineTimer(known / total)
        console = stderr()
        self._live = Live(Text(), console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        super().__init__(self._live)

    def see(self, record: dict[str, Any]) -> None:
        """Take the object of one prompt into account; those of an earlier run come first or between."""
        self._done += 1
        self._failed += "error" in record
        self._tokens += len(record.get("token_ids", ()))
        if self._live is not None:
            self._live.update(Text(self._line()), refresh=True)
        elif self._line_timer.due(self._done / self._total):
            say(self._line())

    def _line(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        done = f"{self._done} of {counted(self._total, 'prompt')}{failed}, {counted(self._tokens, 'token')}"
        new = self._done - self._known
        each = (monotonic() - self._began) / new if new > 0 else None
        left = "done" if self._done >= self._total else time_left(each and each * (self._total - self._done))
        return f"{done}, {left}"
