"""How a fit is going: a bar on a terminal, one plain line now and then elsewhere."""

from time import monotonic
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from hispec.budget import Budget
from hispec.counts import counted
from hispec.exits.fit import Fit
from hispec_cli.ui.budget import say_if_not_kept
from hispec_cli.ui.console import say, stderr

EVERY_S = 30.0
SHARE = 0.1


class FitProgress:
    """Shows what is being done, how far the exits are from the whole model, and time left.

    Args:
        steps: the most updates.
        budget: of the command.
    """

    def __init__(self, steps: int, budget: Budget) -> None:
        self._steps, self._budget = steps, budget
        self._said, self._said_at, self._doing = 0.0, monotonic(), ""
        self._console = console = stderr()
        self._warned = say_if_not_kept(budget, console)
        self._bar = (
            Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=console, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("measuring the plain exits", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def see(self, fit: Fit) -> None:
        """Take an update, or a row of the held-out text, into account."""
        if not self._warned and not fit.step:
            self._warned = say_if_not_kept(self._budget, self._console, fit.least)
        doing = "measuring the plain exits" if not fit.before else "measuring the fitted exits"
        if fit.looked is None:
            doing = f"step {fit.step} of {self._steps}"
        line, share = self._line(doing, fit), max(fit.step / self._steps, fit.share_of(self._budget))
        if self._bar is not None:
            self._bar.update(self._task, total=1.0, completed=share, description=line)
            return
        now, begins = monotonic(), fit.looked is not None and not fit.step and doing != self._doing
        if begins or share >= self._said + SHARE - 1e-9 or now >= self._said_at + EVERY_S or fit.ended is not None:
            self._said, self._said_at, self._doing = share, now, doing
            say(line)

    def say(self, message: str) -> None:
        """Print a warning above the bar."""
        say(message, "yellow", self._console)

    def _line(self, doing: str, fit: Fit) -> str:
        if fit.looked is not None:
            return f"{doing}: {fit.looked} of {counted(fit.looks_at, 'row')}"
        share = max(fit.step / self._steps, fit.share_of(self._budget))
        exits = ", ".join(f"exit {exit_} {kl:.3f}" for exit_, kl in fit.losses.items())
        left = f"about {_time(fit.seconds / share - fit.seconds)} left" if share else "time left unknown"
        return f"{doing}, divergence in nats: {exits}, " + (left if fit.ended is None else f"ended: {fit.ended}")


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
