"""How a calibration is going, and what it came to.

It draws only when it is told of something, between measurements, never during one.
"""

from time import monotonic
from types import TracebackType
from typing import Self

from rich import box
from rich.table import Table
from rich.text import Text

from hispec.calibration.session import Calibrated, Job, Phase, Progress, Scored
from hispec_cli.ui.console import say, stderr
from hispec_cli.ui.safe_text import visible

TITLES = {
    "costs": "measuring what spans, heads and steps cost",
    "traces": "recording what every exit says",
    "replay": "replaying configurations",
    "timing": "timing the best",
    "check": "checking on prompts not seen before",
}


class CalibrationView:
    """Shows the progress of a calibration on stderr.

    Args:
        job: that is calibrated.
        quiet: show nothing: another process does.
    """

    def __init__(self, job: Job, *, quiet: bool = False) -> None:
        self._job, self._quiet = job, quiet
        self._began = monotonic()
        self._phase = ""
        self._scored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def see(self, progress: Progress) -> None:
        """Take a step into account."""
        self._scored += isinstance(progress, Scored)
        if isinstance(progress, Phase) and progress.name != self._phase and not self._quiet:
            self._phase = progress.name
            say(f"{monotonic() - self._began:5.0f} s  {TITLES[self._phase]}")


def show_result(job: Job, result: Calibrated) -> None:
    """The final table on stderr: winner and baselines on unseen prompts."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("configuration")
    for head in ("tokens/s", "95 %", "winner over it", "95 %"):
        table.add_column(head, justify="right")
    for configuration in result.check.configurations:
        speed, ratio = result.speed(configuration), result.ratio(result.winner, configuration)
        table.add_row(
            Text(visible(configuration.describe(job.target))),
            f"{speed.value:.1f}",
            _interval(speed.ci95, 1),
            f"{ratio.value:.2f}",
            _interval(ratio.ci95, 2),
        )
    stderr().print(table)
    if result.ties:
        say("may be as fast: " + "; ".join(tie.describe(job.target) for tie in result.ties))


def _interval(ci95: tuple[float, float] | None, digits: int) -> str:
    return f"{ci95[0]:.{digits}f}-{ci95[1]:.{digits}f}" if ci95 else ""
