"""Handlers of signals, such as Ctrl-C, within a context."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Handle signals in a way within the context, and as before after it."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ctrl_c(ask: Callable[[], object] | None = None) -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt`, even where the shell would have it ignored.

    Args:
        ask: called by the first Ctrl-C instead of raising; it requests an end with the result so far.
    """

    def ask_once(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if ask is not None:
            ask()

    with handled({signal.SIGINT: signal.default_int_handler if ask is None else ask_once}):
        yield


def end_on_request(number: int, _frame: FrameType | None) -> None:
    """Handle a request to end, which by default would leave the terminal as the program needs it."""
    raise SystemExit(128 + number)


def stop(number: int) -> None:
    """Stop this process as the signal does by default, and return once it is continued."""
    handler = signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.signal(number, handler)
