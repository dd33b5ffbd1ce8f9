"""Keys that are typed while an answer is written: they are not echoed into it, and kept for the next prompt."""

import os
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from hispec_cli.ui.signals import end_on_request, handled, stop


@contextmanager
def typeahead_kept(terminal: TextIO) -> Iterator[None]:
    """Let the terminal queue keys without echoing them, and keep Ctrl-C from emptying the queue.

    Ctrl-Z restores the terminal's mode until the program continues. Nothing is changed if the stream is no terminal, or
    if another program owns the terminal.
    """
    if not _is_ours(terminal):
        yield
        return
    mode = _Mode(terminal.fileno())
    wanted = {signal.SIGTSTP: mode.suspend, signal.SIGTERM: end_on_request}
    with handled(wanted):
        mode.set()
        try:
            yield
        finally:
            mode.restore()


class _Mode:
    """The mode of a terminal, before and during an answer."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def set(self) -> None:
        """Switch to the mode for an answer, and remember the one before."""
        self._before = termios.tcgetattr(self._descriptor)
        mode = termios.tcgetattr(self._descriptor)
        mode[3] = mode[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH  # a line of the driver's ends at 4096
        self._change(mode)

    def restore(self) -> None:
        """Switch back. What was typed stays in the queue."""
        self._change(self._before)

    def suspend(self, number: int, _frame: FrameType | None) -> None:
        """Stop, with the terminal restored, and continue once resumed."""
        self.restore()
        stop(number)
        self.set()

    def _change(self, mode: list[Any]) -> None:
        with suppress(OSError, termios.error):  # the terminal has gone
            if os.tcgetpgrp(self._descriptor) == os.getpgrp():  # else the change would stop this process
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mode)


def _is_ours(terminal: TextIO) -> bool:
    try:
        return terminal.isatty() and os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
