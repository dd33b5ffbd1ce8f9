"""The progress of something that takes long: redrawn on a terminal, single plain lines elsewhere."""

from contextlib import AbstractContextManager
from time import monotonic
from typing import Protocol, Self

EVERY_S, SHARE = 30.0, 0.1
"""After which a plain line is due."""


class LineTimer:
    """Tells when a plain line is due: after every 10 % and every 30 s, and once all is done.

    Args:
        share: the share that is done already, from 0 to 1.
    """

    def __init__(self, share: float = 0.0) -> None:
        self._share, self._at = share, monotonic()

    def due(self, share: float = 0.0, *, news: bool = False) -> bool:
        """Return whether a line is due; the caller then says it.

        Args:
            share: the share that is done, from 0 to 1; 0 where that is not known.
            news: whether there is something that does not wait.
        """
        now = monotonic()
        more = share >= self._share + SHARE - 1e-9 or share >= 1 > self._share
        if not (news or more or now >= self._at + EVERY_S):
            return False
        self._share, self._at = share, now
        return True


class Drawn(Protocol):
    """The object that rich draws on a terminal."""

    def start(self) -> None:
        """Begin to draw."""

    def stop(self) -> None:
        """Leave the terminal as it was."""


class Display(AbstractContextManager["Display"]):
    """Draws while it is entered, and leaves the terminal as it was.

    Args:
        drawn: the object that is drawn, None where nothing can be.
    """

    def __init__(self, drawn: Drawn | None) -> None:
        self._drawn = drawn

    def __enter__(self) -> Self:
        if self._drawn is not None:
            self._drawn.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self._drawn.stop()


def time_left(seconds: float | None) -> str:
    """Return the remaining time as text; None where it is not known."""
    if seconds is None:
        return "time left unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes} min {rest:02d} s left" if minutes else f"about {rest} s left"
