"""How a fit is going: a bar on a terminal, one plain line now and then elsewhere."""

from time import monotonic
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from hispec.exits.fit import Fit
from hispec_cli.ui.console import say, stderr

EVERY_S = 30.0
SHARE = 0.1


class FitProgress:
    """Shows steps, how far the exits are from the whole model, and time left.

    Args:
        steps: the most updates.
        seconds: the most time, None for no limit.
    """

    def __init__(self, steps: int, seconds: float | None) -> None:
        self._steps, self._seconds = steps, seconds
        self._said, self._said_at = 0.0, monotonic()
        console = stderr()
        self._bar = (
            Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=console, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("loading the model", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def see(self, fit: Fit) -> None:
        """Take an update into account."""
        share = fit.step / self._steps
        if self._seconds is not None:
            share = max(share, min(1.0, fit.seconds / self._seconds))
        left = fit.seconds / share - fit.seconds
        exits = ", ".join(f"exit {exit_} {kl:.3f}" for exit_, kl in fit.losses.items())
        line = f"step {fit.step} of {self._steps}, divergence in nats: {exits}"
        line += f", about {_time(left)} left" if fit.ended is None else f", ended: {fit.ended}"
        if self._bar is not None:
            self._bar.update(self._task, total=1.0, completed=share, description=line)
            return
        now = monotonic()
        if share >= self._said + SHARE - 1e-9 or now >= self._said_at + EVERY_S or fit.ended is not None:
            self._said, self._said_at = share, now
            say(line)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
