"""The progress of a benchmark: a table that grows on a terminal, single plain lines elsewhere.

It draws only after a finished prompt, between measurements, never during one.
"""

from collections import defaultdict
from collections.abc import Sequence
from time import monotonic
from typing import Self

from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hispec.bench.record import Measurement
from hispec.counts import counted
from hispec_cli.ui.console import say, stderr
from hispec_cli.ui.progress import Display, LineTimer, time_left


class BenchProgress(Display):
    """Shows running totals by arm.

    Args:
        arms: names, the one under test first.
        done: answers that an earlier run left.
        total: prompts in all, those included.
        quiet: show nothing: another process does.
    """

    def __init__(self, arms: Sequence[str], done: Sequence[Measurement], total: int, *, quiet: bool = False) -> None:
        self._arms, self._total, self._quiet = arms, total, quiet
        self._answers: dict[str, list[Measurement]] = defaultdict(list)
        for measurement in done:
            self._answers[measurement.arm].append(measurement)
        self._before = self._done = len(self._answers[arms[0]])
        self._began, self._line_timer = monotonic(), LineTimer(self._done / total if total else 0.0)
        console = stderr()
        draws = console.is_terminal and not quiet
        self._live = Live(self._table(), console=console, auto_refresh=False, transient=True) if draws else None
        super().__init__(self._live)

    def __enter__(self) -> Self:
        super().__enter__()
        if self._live is not None:
            self._live.refresh()
        return self

    def see(self, measurements: Sequence[Measurement]) -> None:
        """Take the answers to one prompt into account."""
        self._done += 1
        for measurement in measurements:
            self._answers[measurement.arm].append(measurement)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif not self._quiet and self._line_timer.due(self._done / self._total):
            speeds = ", ".join(f"{arm} {_speed(self._answers[arm])}" for arm in self._arms)
            say(f"{self._done} of {counted(self._total, 'prompt')}, {self._left()}; tokens/s: {speeds}")

    def _table(self) -> Table:
        table = Table(
            title=Text(f"{self._done} of {counted(self._total, 'prompt')}, {self._left()}"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("arm")
        for head in ("tokens/s", "speed-up", "tokens per pass", "identical", "score"):
            table.add_column(head, justify="right")
        baseline = self._answers["autoregressive"]
        for arm in self._arms:
            answers = self._answers[arm]
            table.add_row(
                Text(arm),
                _speed(answers),
                _ratio(answers, baseline),
                _per_pass(answers),
                _identical(answers),
                _score(answers),
            )
        return table

    def _left(self) -> str:
        if self._done >= self._total:
            return "done"
        measured = self._done - self._before
        return time_left((monotonic() - self._began) / measured * (self._total - self._done) if measured else None)


def _tokens_per_second(answers: Sequence[Measurement]) -> float | None:
    seconds = sum(answer.seconds for answer in answers)
    return sum(len(answer.token_ids) for answer in answers) / seconds if seconds else None


def _speed(answers: Sequence[Measurement]) -> str:
    speed = _tokens_per_second(answers)
    return "" if speed is None else f"{speed:.1f}"


def _ratio(answers: Sequence[Measurement], baseline: Sequence[Measurement]) -> str:
    ours, theirs = _tokens_per_second(answers), _tokens_per_second(baseline)
    return f"{ours / theirs:.2f}" if ours and theirs else ""


def _per_pass(answers: Sequence[Measurement]) -> str:
    passes = sum(answer.target_passes or 0 for answer in answers)
    return f"{sum(len(answer.token_ids) for answer in answers) / passes:.2f}" if passes else ""


def _identical(answers: Sequence[Measurement]) -> str:
    compared = [answer.lossless for answer in answers if answer.lossless is not None]
    return f"{sum(one.identical for one in compared)}/{len(compared)}" if compared else ""


def _score(answers: Sequence[Measurement]) -> str:
    scores = [answer.score for answer in answers if answer.score is not None]
    return f"{sum(scores) / len(scores):.2f}" if scores else ""
