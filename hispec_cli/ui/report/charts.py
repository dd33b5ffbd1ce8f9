"""Charts of a report as inline SVG."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hispec.bench.names import BASELINES
from hispec.bench.record import ArmFigures, Estimate, LevelFigures, Report
from hispec.events import PHASES
from hispec_cli.ui.report.context import number
from hispec_cli.ui.report.drawing import (
    ACCENT,
    COLORS,
    HALF,
    INK,
    MARKERS,
    MUTED,
    PLAIN,
    WHOLE,
    Chart,
    categories,
    drawing,
    label,
    legend,
    short,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = ("draft", "intermediate", "prefill", "other")


def draw_charts(report: Report) -> list[Chart]:
    """Return all charts that the report has figures for."""
    charts = (_throughput, _speedup, _phases, _acceptance, _lengths)
    with drawing():
        return [chart for draw in charts if (chart := draw(report)) is not None]


def _throughput(report: Report) -> Chart | None:
    arms = [arm for arm in report.arms if arm.tokens_per_second is not None]
    if not arms:
        return None
    figure = Figure((HALF, 0.8 + 0.42 * len(arms)))
    axes = figure.subplots()
    speeds = [arm.tokens_per_second or 0.0 for arm in arms]
    ends = [arm.ci95 or (speed, speed) for arm, speed in zip(arms, speeds, strict=True)]
    axes.barh(range(len(arms)), speeds, 0.62, color=[ACCENT if arm is report.arms[0] else PLAIN for arm in arms])
    axes.hlines(range(len(arms)), *zip(*ends, strict=True), color=INK, linewidth=1.6)
    for at, (speed, (_, high)) in enumerate(zip(speeds, ends, strict=True)):
        label(axes, max(speed, high), at, number(speed))
    categories(axes, [arm.name for arm in arms])
    axes.set_xlim(0, 1.18 * max(high for _, high in ends) or 1)
    axes.set_xlabel("tokens per second")
    return Chart(
        "throughput",
        "Throughput",
        "All new tokens over all seconds, prompts included. Lines: 95 % bootstrap interval over prompts and repeats.",
        to_svg(figure, "throughput", "Tokens per second of every arm"),
    )


def _speedup(report: Report) -> Chart | None:
    baseline = next((name for name in BASELINES if any(name in arm.speedup for arm in report.arms)), None)
    if baseline is None:
        return None
    measured = [(arm, arm.speedup[baseline]) for arm in report.arms if baseline in arm.speedup]
    figure = Figure((HALF, 0.8 + 0.42 * len(measured)))
    axes = figure.subplots()
    for at, (arm, speedup) in enumerate(measured):
        color = ACCENT if arm is report.arms[0] else MUTED
        low, high = speedup.ci95 or (speedup.value, speedup.value)
        axes.hlines(at, low, high, color=color, linewidth=5, alpha=0.45)
        axes.plot(speedup.value, at, "o", color=color, markersize=6)
        label(axes, max(high, speedup.value), at, _factor(speedup))
    axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    categories(axes, [arm.name for arm, _ in measured])
    highest = max(end for _, speedup in measured for end in (speedup.value, *(speedup.ci95 or ())))
    axes.set_xlim(0, 1.42 * max(highest, 1))
    axes.set_xlabel(f"times the speed of {short(baseline)}")
    return Chart(
        "speedup",
        f"Speed-up over {baseline}",
        f"Ratio of throughputs on the same prompts in the same run. Right of the dashed line is faster than {baseline}.",
        to_svg(figure, "speedup", f"Speed-up of every arm over {baseline}"),
    )


def _factor(speedup: Estimate) -> str:
    return f"{speedup.value:.2f}" + (
        f"  ({speedup.ci95[0]:.2f}\u2013{speedup.ci95[1]:.2f})" if speedup.ci95 is not None else ""
    )


def _phases(report: Report) -> Chart | None:
    arms = [arm for arm in report.arms if arm.tokens]
    if not any(arm.phase_seconds for arm in arms):
        return None
    figure = Figure((WHOLE, 1.15 + 0.42 * len(arms)))
    axes = figure.subplots()
    left = [0.0] * len(arms)
    known = [*PHASES, *sorted({phase for arm in arms for phase in arm.phase_seconds} - set(PHASES))]
    for phase in [*known, None]:
        widths = [1000 * _phase(arm, phase) / arm.tokens for arm in arms]
        if max(widths) <= 0.005 * max(1000 * arm.seconds / arm.tokens for arm in arms):
            continue
        color = COLORS[phase if phase in COLORS else "other"]
        axes.barh(range(len(arms)), widths, 0.62, left, color=color, label=short(phase or "not broken down"))
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    for at, end in enumerate(left):
        label(axes, end, at, number(end, 2))
    categories(axes, [arm.name for arm in arms])
    axes.set_xlim(0, 1.1 * max(left) or 1)
    axes.set_xlabel("milliseconds per new token")
    legend(figure, [axes])
    return Chart(
        "phases",
        "Time by level",
        "Where the milliseconds of one new token go, on average. An arm that does not tell is one block.",
        to_svg(figure, "phases", "Milliseconds per new token by level, for every arm"),
        wide=True,
    )


def _phase(arm: ArmFigures, phase: str | None) -> float:
    """Return seconds of a phase, or of the time outside of all phases."""
    if phase is None:
        return max(0.0, arm.seconds - sum(arm.phase_seconds.values()))
    return arm.phase_seconds.get(phase, 0.0)


def _acceptance(report: Report) -> Chart | None:
    panels = list(_panels(report))
    if not panels:
        return None
    figure, all_axes = _row(panels, "share accepted")
    for arm, axes in zip(panels, all_axes, strict=True):
        for level, color, marker in _styled(arm):
            points = [
                (at, accepted / proposed)
                for at, (proposed, accepted) in enumerate(zip(level.proposed_at, level.accepted_at, strict=True), 1)
                if proposed
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=short(level.name))
        axes.set_xlabel("position in the verified run")
        axes.set_ylim(0, 1.04)
    legend(figure, all_axes)
    return Chart(
        "acceptance",
        "Acceptance by position",
        "Of the tokens at each position of a verified run, the share that the next level accepted. A token after a "
        "rejected one counts as rejected.",
        to_svg(figure, "acceptance", "Share of accepted tokens by position, for every level"),
        wide=True,
    )


def _lengths(report: Report) -> Chart | None:
    panels = [arm for arm in _panels(report) if any(level.verifications for level in arm.levels)]
    if not panels:
        return None
    figure, all_axes = _row(panels, "share of verifications")
    for arm, axes in zip(panels, all_axes, strict=True):
        verified = [styled for styled in _styled(arm) if styled[0].verifications]
        width = 0.8 / len(verified)
        for offset, (level, color, _) in enumerate(verified):
            shift = (offset - (len(verified) - 1) / 2) * width
            places = [length + shift for length in range(len(level.accepted_lengths))]
            shares = [times / level.verifications for times in level.accepted_lengths]
            axes.bar(places, shares, 0.92 * width, color=color, label=short(level.name))
        axes.set_xlabel("tokens accepted at once")
    legend(figure, all_axes)
    return Chart(
        "lengths",
        "Accepted lengths",
        "How many of the tokens of one level the next one accepted in a verification. Weight at the right: longer runs pay.",
        to_svg(figure, "lengths", "Histogram of accepted lengths, for every level"),
        wide=True,
    )


def _panels(report: Report) -> Iterator[ArmFigures]:
    """Return arms that speculate and say how."""
    return (arm for arm in report.arms if any(level.proposed for level in arm.levels))


def _styled(arm: ArmFigures) -> Iterator[tuple[LevelFigures, str, str]]:
    """Return an arm's levels, each with a colour and a marker of its own."""
    spare = itertools.cycle(name for name in _LEVELS if name not in {level.name for level in arm.levels})
    for at, level in enumerate(arm.levels):
        name = level.name if level.name in _LEVELS else next(spare)
        yield level, COLORS[name], MARKERS[at % len(MARKERS)]


def _row(panels: Sequence[ArmFigures], label: str) -> "tuple[Figure, list[Axes]]":
    """Return a panel for each arm, side by side, with shares upwards and whole numbers rightwards."""
    figure = Figure((WHOLE, 2.9))
    all_axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for arm, axes in zip(panels, all_axes, strict=True):
        axes.set_title(short(arm.name), color=INK)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.grid(axis="y")
    all_axes[0].set_ylabel(label)
    return figure, all_axes
