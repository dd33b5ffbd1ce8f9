"""The loop of a chat: it reads turns from a terminal or a pipe, and executes them one by one."""

import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType

import typer

from hispec.errors import HispecError, UsageError
from hispec_cli.commands.chat.slash import Leave
from hispec_cli.exit_codes import INTERRUPTED
from hispec_cli.ui.console import report_error, say
from hispec_cli.ui.signals import ctrl_c, end_on_request, handled
from hispec_cli.ui.typeahead import typeahead_kept

Take = Callable[[str], bool]
"""Executes an input and returns True if its answer was interrupted. Raises `HispecError`s, and `Leave` to end."""


def converse(take: Take, read: Callable[[], str], offer: Callable[[], None] = lambda: None) -> None:
    """Execute inputs until the user leaves. No mistake and no failure of an answer ends the loop.

    Args:
        take: executes an input.
        read: returns the next input.
        offer: puts keys that were typed before an answer was stopped into the next input, without sending it.
    """
    with handled({signal.SIGINT: _ignore, signal.SIGTERM: end_on_request}):
        while True:
            try:
                text = read()
            except KeyboardInterrupt:
                say("Ctrl-D or /quit leaves")
                continue
            except EOFError:
                return
            try:
                if text.strip():
                    with ctrl_c(), typeahead_kept(sys.stdin):
                        if take(text):
                            offer()
            except KeyboardInterrupt:
                say("stopped at once; the validated part of the answer is kept")
                offer()
            except HispecError as error:
                report_error(error.message, error.hint)
            except Leave:
                return


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Ignore a second Ctrl-C between an answer and the next input, which would break the event loop of line editing.

    While something is typed, Ctrl-C is a key like others.
    """


def feed(take: Take, lines: Iterable[bytes]) -> None:
    """Take one turn a line, each answered before the next is read.

    Raises:
        HispecError: the first mistake or failure.
        typer.Exit: an answer was interrupted.
    """
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UsageError(
                f"line {number} of standard input is not UTF-8 text", "convert it first, for example with iconv"
            ) from None
        if not text.strip():
            continue
        try:
            interrupted = take(text)
        except Leave:
            return
        if interrupted:
            raise typer.Exit(INTERRUPTED)
