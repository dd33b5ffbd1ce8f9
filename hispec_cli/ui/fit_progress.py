"""The progress of a fit: a bar on a terminal, single plain lines elsewhere."""

from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from hispec.budget import Budget
from hispec.counts import counted
from hispec.exits.fit import Fit
from hispec_cli.ui.budget import say_if_not_kept
from hispec_cli.ui.console import say, stderr
from hispec_cli.ui.progress import Display, LineTimer, time_left


class FitProgress(Display):
    """Shows the current step, the agreement of the exits with the whole model, and the time left.

    Args:
        steps: the most updates.
        budget: the time budget of the command.
    """

    def __init__(self, steps: int, budget: Budget) -> None:
        self._steps, self._budget = steps, budget
        self._line_timer, self._doing = LineTimer(), ""
        self._console = console = stderr()
        self._warned = say_if_not_kept(budget, console)
        columns = BarColumn(), TextColumn("{task.description}", markup=False)
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        super().__init__(self._bar)

    def __enter__(self) -> Self:
        super().__enter__()
        if self._bar is not None:
            self._task = self._bar.add_task("measuring the plain exits", total=None)
        return self

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
        begins = fit.looked is not None and not fit.step and doing != self._doing
        if self._line_timer.due(share, news=begins or fit.ended is not None):
            self._doing = doing
            say(line)

    def say(self, message: str) -> None:
        """Print a warning above the bar."""
        say(message, "yellow", self._console)

    def _line(self, doing: str, fit: Fit) -> str:
        if fit.looked is not None:
            return f"{doing}: {fit.looked} of {counted(fit.looks_at, 'row')}"
        share = max(fit.step / self._steps, fit.share_of(self._budget))
        exits = ", ".join(f"exit {exit_} {kl:.3f}" for exit_, kl in fit.losses.items())
        left = time_left(fit.seconds / share - fit.seconds if share else None)
        return f"{doing}, divergence in nats: {exits}, " + (left if fit.ended is None else f"ended: {fit.ended}")
