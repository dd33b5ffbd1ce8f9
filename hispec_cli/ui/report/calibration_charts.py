"""Charts of a calibration as inline SVG."""

from collections.abc import Iterator
from itertools import combinations, cycle
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hispec.calibration.fitting import samples_of
from hispec.calibration.reliability import Bin, reliability
from hispec.calibration.replay import readers_of
from hispec.calibration.session import Calibrated
from hispec.calibration.traces import Reader
from hispec.counts import counted
from hispec.metrics import exit_name
from hispec_cli.ui.calibration_state import Finalist, Standing
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


def draw_calibration(result: Calibrated, finalists: list[Finalist]) -> list[Chart]:
    """All charts that there are figures for.

    Args:
        result: of the calibration.
        finalists: as timed.
    """
    with drawing():
        charts = (_agreement(result), _prediction(finalists), _reliability(result))
        return [chart for chart in charts if chart is not None]


def _agreement(result: Calibrated) -> Chart | None:
    target = result.scorer.bench.target
    depth = max(reader.exit_layer for reader in result.agreement if reader.model == target)
    lower = {reader: share for reader, share in result.agreement.items() if reader != Reader(target, depth)}
    if not lower:
        return None
    figure = Figure((HALF, 3.2))
    axes = figure.subplots()
    looks = cycle(zip(_LINES, MARKERS * 2, strict=False))
    for weights, words in sorted({(reader.weights, reader.words) for reader in lower}):
        own = sorted(
            (r.exit_layer, share)
            for r, share in lower.items()
            if (r.model, r.weights, r.words) == (target, weights, words)
        )
        color, marker = next(looks)
        if own:
            name = (f"{weights}, " if weights else "") + (
                f"head of {counted(words, 'word')}" if words else "whole head"
            )
            dashes = (0, (4, 3)) if words else "solid"  # lines often coincide
            axes.plot(
                *zip(*own, strict=True),
                color=COLORS[color],
                linestyle=dashes,
                marker=marker,
                markersize=4 if words else 7,
                label=name,
            )
    for reader, share in sorted(lower.items()):
        if reader.model != target and not reader.words:
            axes.axhline(share, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=short(reader.model))
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
        "Along texts that the target wrote, the share of tokens for which an exit's best word is the target's.",
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
        best = one.standing is Standing.best
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
        "dashed line replay was right; a machine that changed pace meanwhile moves all points alike.",
        to_svg(figure, "prediction", "Predicted against timed tokens per second of the finalists"),
    )


def _reliability(result: Calibrated) -> Chart | None:
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
        "the lower level is, on texts that nothing was fitted to (exit 2/256: its head of 256 words). Lines: 95 % interval (Wilson). On the dashed line "
        "predictions hold.",
        to_svg(figure, "reliability", "Predicted against observed acceptance, for every pair of levels"),
        wide=len(panels) > 1,
    )


def curves(result: Calibrated) -> Iterator[tuple[str, list[Bin]]]:
    """For every pair of levels of the winner, or else of the fastest finalist that speculates: (names, its curve)."""
    finalists = [score.configuration for score in result.found.finalists]
    shown = next((one for one in (result.winner, *finalists) if one.readers), None)
    fitter = result.scorer.fitter
    if shown is None or not fitter.unseen:
        return
    hierarchy = result.scorer.bench.hierarchy(shown)
    predictors, readers = fitter.predictors(hierarchy), readers_of(hierarchy)
    for lower, upper in combinations(range(len(readers)), 2):
        if readers[lower].model:  # guesses are not predicted
            samples = samples_of(readers[lower], readers[upper], fitter.unseen)
            names = (_exit_name(readers[place], place == len(readers) - 1) for place in (lower, upper))
            yield " judged by ".join(names), reliability(predictors[lower, upper], samples)


def _exit_name(reader: Reader, target: bool) -> str:
    return (
        "target"
        if target
        else exit_name(reader.exit_layer, reader.weights) + (f"/{reader.words}" if reader.words else "")
    )
