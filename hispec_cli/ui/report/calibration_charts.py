"""Charts of a calibration as inline SVG."""

from collections.abc import Iterator
from itertools import combinations, cycle
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hispec.calibration.fitting import samples_of
from hispec.calibration.recording import LevelSpec
from hispec.calibration.reliability import Bin, reliability
from hispec.calibration.replay import specs_of
from hispec.calibration.result import CalibrationResult
from hispec.counts import counted
from hispec.metrics import exit_name
from hispec_cli.ui.calibration_state import CandidateStatus, Finalist
from hispec_cli.ui.report.drawing import (
    ACCENT,
    COLORS,
    HALF,
    INK,
    MARKERS,
    MUTED,
    WHOLE,
    Chart,
    drawing,
    legend,
    short,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = ("draft", "intermediate", "target", "prefill", "other")


def draw_calibration(result: CalibrationResult, finalists: list[Finalist]) -> list[Chart]:
    """Return all charts that there are figures for.

    Args:
        result: the result of the calibration.
        finalists: the finalists with their timings.
    """
    with drawing():
        charts = (_agreement(result), _prediction(finalists), _reliability(result))
        return [chart for chart in charts if chart is not None]


def _agreement(result: CalibrationResult) -> Chart | None:
    target = result.scorer.builder.target
    depth = max(spec.exit_layer for spec in result.agreement if spec.model == target)
    lower = {spec: share for spec, share in result.agreement.items() if spec != LevelSpec(target, depth)}
    if not lower:
        return None
    figure = Figure((HALF, 3.2))
    axes = figure.subplots()
    looks = cycle(zip(_LINES, MARKERS * 2, strict=False))
    for weights, head_size in sorted({(spec.weights, spec.head_size) for spec in lower}):
        own = sorted(
            (r.exit_layer, share)
            for r, share in lower.items()
            if (r.model, r.weights, r.head_size) == (target, weights, head_size)
        )
        color, marker = next(looks)
        if own:
            name = (f"{weights}, " if weights else "") + (
                f"head of {counted(head_size, 'token')}" if head_size else "whole head"
            )
            dashes = (0, (4, 3)) if head_size else "solid"  # lines often coincide
            axes.plot(
                *zip(*own, strict=True),
                color=COLORS[color],
                linestyle=dashes,
                marker=marker,
                markersize=4 if head_size else 7,
                label=name,
            )
    for spec, share in sorted(lower.items()):
        if spec.model != target and not spec.head_size:
            axes.axhline(share, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=short(spec.model))
    axes.set_xlabel(f"exit, of {counted(depth, 'layer')}")
    axes.set_ylabel("share of tokens")
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.grid(axis="y")
    legend(figure, [axes])
    return Chart(
        "agreement",
        "Agreement by depth",
        "Along texts that the target wrote, the share of tokens for which an exit's argmax is the target's.",
        to_svg(figure, "agreement", "Share of tokens on which each exit agrees with the target"),
    )


def _prediction(finalists: list[Finalist]) -> Chart | None:
    timed = [(one, one.predicted, one.speed) for one in finalists if one.predicted is not None and one.speed]
    if not timed:
        return None
    figure = Figure((HALF, 3.2))
    axes = figure.subplots()
    highest = 0.0
    for one, predicted, speed in timed:
        low, high = speed.ci95 or (speed.value, speed.value)
        best = one.status is CandidateStatus.best
        color = ACCENT if best else MUTED
        axes.vlines(predicted, low, high, color=color, linewidth=1.6, alpha=0.6)
        axes.plot(predicted, speed.value, "D" if best else "o", color=color, markersize=7 if best else 5)
        highest = max(highest, predicted, high)
    end = 1.06 * highest
    axes.plot([0, end], [0, end], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, end)
    axes.set_ylim(0, end)
    axes.set_xlabel("tokens per second by replay")
    axes.set_ylabel("as timed")
    axes.grid()
    return Chart(
        "prediction",
        "Replay against timing",
        "Every finalist, on the prompts that were calibrated on; lines: 95 % interval; diamond: the fastest. On the "
        "dashed line replay was right; a machine that became faster or slower meanwhile moves all points alike.",
        to_svg(figure, "prediction", "Predicted against timed tokens per second of the finalists"),
    )


def _reliability(result: CalibrationResult) -> Chart | None:
    panels = [(name, bins) for name, bins in curves(result) if bins]
    if not panels:
        return None
    figure = Figure((WHOLE if len(panels) > 1 else HALF, 3.4))
    all_axes: list[Axes] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for (name, bins), axes in zip(panels, all_axes, strict=True):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        x = [each.predicted for each in bins]
        axes.vlines(
            x, *zip(*(each.ci95 for each in bins), strict=True), color=COLORS["draft"], linewidth=1.6, alpha=0.6
        )
        axes.plot(x, [each.accepted for each in bins], color=COLORS["draft"], marker="o", markersize=5)
        axes.set_title(name, color=INK)
        axes.set_xlim(0, 1.04)
        axes.set_ylim(0, 1.04)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_xlabel("predicted from confidence")
        axes.grid()
    all_axes[0].set_ylabel("accepted")
    return Chart(
        "reliability",
        "Acceptance by confidence",
        "Tokens in groups of equal number, by the chance of acceptance that the adaptive policy predicts from how sure "
        "the lower level is, on texts that nothing was fitted to (exit 2/256: its head of 256 tokens). Lines: 95 % interval (Wilson). On the dashed line "
        "predictions hold.",
        to_svg(figure, "reliability", "Predicted against observed acceptance, for every pair of levels"),
        wide=len(panels) > 1,
    )


def curves(result: CalibrationResult) -> Iterator[tuple[str, list[Bin]]]:
    """Yield (names, reliability) for each pair of levels of the winner, or else of the fastest finalist that speculates."""
    finalists = [score.configuration for score in result.found.finalists]
    shown = next((one for one in (result.winner, *finalists) if one.specs), None)
    fitter = result.scorer.fitter
    if shown is None or not fitter.unseen:
        return
    hierarchy = result.scorer.builder.hierarchy(shown)
    predictors, specs = fitter.predictors(hierarchy), specs_of(hierarchy)
    for lower, upper in combinations(range(len(specs)), 2):
        if specs[lower].model:  # n-gram drafts are not predicted
            samples = samples_of(specs[lower], specs[upper], fitter.unseen)
            names = (_exit_name(specs[place], place == len(specs) - 1) for place in (lower, upper))
            yield " verified by ".join(names), reliability(predictors[lower, upper], samples)


def _exit_name(spec: LevelSpec, target: bool) -> str:
    return (
        "target"
        if target
        else exit_name(spec.exit_layer, spec.weights) + (f"/{spec.head_size}" if spec.head_size else "")
    )
