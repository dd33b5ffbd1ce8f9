"""The views of a calibration: its progress, and its result.

It draws only on progress events, between measurements, never during one, and so rarely that drawing takes a small share
of the time, since that time is taken from the budget.
"""

from dataclasses import replace
from time import monotonic

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hispec.bench.caveats import FEW
from hispec.calibration.result import CalibrationResult
from hispec.calibration.run import CalibrationJob, Phase, Planned, Progress, Replayed, Timed
from hispec.calibration.search import Configuration
from hispec.counts import counted
from hispec_cli.ui.budget import say_if_not_kept
from hispec_cli.ui.calibration_panels import (
    ASCII,
    TITLES,
    UNICODE,
    MapGlyphs,
    agreement_rows,
    described,
    heat_map,
    interval,
    joined,
    ramp_for,
    screen,
)
from hispec_cli.ui.calibration_state import CalibrationState, CandidateStatus, TimedProgress, initial, reduce
from hispec_cli.ui.console import say, stderr
from hispec_cli.ui.output import is_unicode
from hispec_cli.ui.progress import Display, LineTimer

INTERVAL = 0.125
"""Seconds between two frames, at least."""
SHARE = 0.03
"""The largest share of the time that drawing may take."""


class CalibrationView(Display):
    """Shows the progress of a calibration on stderr: a screen on a terminal, a line now and then elsewhere.

    Args:
        job: the calibration's job.
        quiet: show nothing: another process does.
    """

    def __init__(self, job: CalibrationJob, *, quiet: bool = False) -> None:
        self.state = initial(job.space, job.budget.seconds)
        self._job, self._quiet = job, quiet
        self._seen: list[TimedProgress] = []
        self._began = job.budget.began
        self._next, self._line_timer = monotonic(), LineTimer()
        self._console = stderr()
        self._warned = not quiet and say_if_not_kept(job.budget, self._console)
        self._glyphs, self._ramp = glyphs_for(self._console), ramp_for(self._console.color_system)
        draws = self._console.is_terminal and not quiet
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if draws else None
        super().__init__(self._live)

    def __exit__(self, *_: object) -> None:
        self.state = self._reduced()
        super().__exit__()

    def see(self, progress: Progress) -> None:
        """Take a step into account, and draw if it is time to."""
        if self._quiet:
            return
        if isinstance(progress, Planned):
            self._tell_plan(progress)
            return
        now = monotonic()
        self._seen.append(TimedProgress(now - self._began, progress))
        new = isinstance(progress, Phase) and progress.name != self.state.phase
        if self._live is None:
            self._tell(now, new=new)
        elif new or now >= self._next:
            self.state = self._reduced()
            size = self._console.size
            rows = screen(
                self.state,
                now - self._began,
                self._job.target,
                size.width - 1,
                size.height - 1,
                self._glyphs,
                self._ramp,
            )
            self._live.update(joined(rows), refresh=True)
            drawn = monotonic()
            self._next = drawn + max(INTERVAL, (drawn - now) / SHARE)

    def _tell(self, now: float, *, new: bool) -> None:
        """Print a line as a phase begins, with the result of the one before, and now and then within it."""
        if not self._line_timer.due(news=new):
            return
        self.state = self._reduced()
        at = f"{now - self._began:5.0f} s  "
        if (sum_ := summary(self.state, self._job.target)) and self.state.scored:
            say(at + sum_)
        if new:
            say(at + TITLES[self.state.phase])
        elif not self.state.scored:
            share = self.state.progress_of(self.state.phase, now - self._began)
            say(f"{at}{TITLES[self.state.phase]}: {share:.0%}")

    def _tell_plan(self, plan: Planned) -> None:
        """Print what a small budget means: shorter answers, or that it cannot be kept."""
        if not self._warned:
            self._warned = say_if_not_kept(self._job.budget, self._console, plan.least)
        if plan.tokens is not None and plan.tokens < self._job.max_new_tokens:
            said = (
                f"answers are cut to {counted(plan.tokens, 'token')} to save time; a longer --budget gives longer ones"
            )
            say(said, console=self._console)

    def _reduced(self) -> CalibrationState:
        seen, self._seen = self._seen, []
        return reduce(self.state, *seen) if seen else self.state


def summary(state: CalibrationState, target: str) -> str:
    """Return the results so far, in one line."""
    listed = [one for one in state.checked or state.finalists if one.speed is not None]
    if listed:
        left = sum(one.status is not CandidateStatus.pruned for one in listed)
        answers = sum(one.answers for one in listed)
        best = listed[0]
        assert best.speed is not None
        within = interval(best.speed, 0)
        few = f", of only {counted(best.prompts, 'prompt')}" if best.prompts < FEW else ""
        return (
            f"{counted(answers, 'answer')} timed, {left} of {counted(len(listed), 'configuration')} left, the fastest: "
            f"{best.configuration.describe(target)}, {best.speed.value:.0f} tokens/s"
            + (f" ({within}{few})" if within else "")
        )
    if state.best is None:
        return ""
    return (
        f"{counted(state.scored, 'replay')} of {counted(len(state.scores), 'configuration')}, the fastest: "
        f"{state.best.configuration.describe(target)}, {state.best.speed:.0f} tokens/s"
    )


def glyphs_for(console: Console) -> MapGlyphs:
    """Return the glyphs that a console can write."""
    return UNICODE if is_unicode(console.encoding) else ASCII


def show_result(job: CalibrationJob, result: CalibrationResult) -> None:
    """Show the result on stderr: on a terminal the map, the agreement by depth, and winner and baselines."""
    console = stderr()
    width, glyphs = console.width - 1, glyphs_for(console)
    if console.is_terminal:
        state = searched(job, result)
        height = len(state.drafters) + 3
        console.print(joined(heat_map(state, job.target, width, height, glyphs, ramp_for(console.color_system))))
        console.print()
    console.print(joined(agreement_rows(result.agreement, job.target, width, glyphs)))
    console.print(_table(job, result, width))
    prompts = counted(result.prompts_checked, "prompt")
    say(f"timed on {prompts} that were set aside; replay: predicted from the others")
    if result.ties:
        say("\n".join(["may be as fast:", *(f"  {tie.describe(job.target)}" for tie in result.ties)]))


def searched(job: CalibrationJob, result: CalibrationResult) -> CalibrationState:
    """Return the state at the end: the replayed configurations, and the results of the finalists."""
    configurations = result.timings.configurations
    best = result.winner if result.winner in configurations else result.check.configurations[0]
    state = reduce(
        initial(job.space, job.budget.seconds),
        *(TimedProgress(0.0, Replayed(score)) for score in result.found.scores),
        TimedProgress(0.0, Phase("timing", 1.0)),
        TimedProgress(0.0, Timed(result.timings, [configurations.index(one) for one in (best, *result.ties)])),
    )
    return replace(state, winner=best)


def _table(job: CalibrationJob, result: CalibrationResult, width: int) -> Table:
    """Return winner and baselines on unseen prompts, with the intervals below."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for head in ("tokens/s\n95 %", "winner over it\n95 %", "replay"):
        table.add_column(head, justify="right", no_wrap=True)
    predicted = {score.configuration: score.speed for score in result.found.scores}
    for configuration in result.check.configurations:
        speed, ratio = result.speed(configuration), result.ratio(result.winner, configuration)
        won = configuration == result.winner
        table.add_row(
            role(result, configuration),
            Text(described(configuration, job.target, width)),
            f"{speed.value:.1f}\n{interval(speed, 1)}",
            "" if won else f"{ratio.value:.2f}\n{interval(ratio, 2)}",
            f"{predicted[configuration]:.1f}" if configuration in predicted else "",
            style="bold" if won else "",
        )
    return table


def role(result: CalibrationResult, configuration: Configuration) -> str:
    """Return the role of a configuration: the winner, a baseline, or both."""
    names = ["winner"] if configuration == result.winner else []
    names += [name for name, baseline in result.baselines().items() if baseline == configuration]
    return ",\n".join(names)
