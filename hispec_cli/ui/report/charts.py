"""Charts of a report as inline SVG: drawn by matplotlib, coloured by the page's own style sheet.

Colours are drawn as placeholders and become CSS variables, so that one drawing serves light, dark and print. Nothing in
the SVG points outside it, and equal reports give equal bytes.
"""

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hispec.bench.names import BASELINES
from hispec.bench.record import ArmFigures, Estimate, LevelFigures, Report
from hispec.events import PHASES
from hispec_cli.ui.report.context import number
from hispec_cli.ui.safe_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VARIABLES = ("ink", "muted", "grid", "accent", "plain", "prefill", "draft", "intermediate", "target", "other", "card")
"""Colours that the page's style sheet defines."""
_PLACEHOLDERS = {name: f"#0000{number:02x}" for number, name in enumerate(VARIABLES, 1)}
_NAMES = {placeholder: name for name, placeholder in _PLACEHOLDERS.items()}
_COLOR = re.compile("|".join(_NAMES))
_INK, _MUTED, _GRID, _ACCENT, _PLAIN = (_PLACEHOLDERS[name] for name in VARIABLES[:5])
_LEVELS = ("draft", "intermediate", "prefill", "other")
_MARKERS = ("o", "s", "^", "D")
_STYLE: Any = {
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_HALF, _WHOLE = 5.4, 11.2
"""Widths in inches: beside another chart, and across the page."""
_LONGEST = 24
"""Characters of a name in a chart."""


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Attributes:
        name: unique on the page.
        title: what it shows.
        note: how to read it.
        svg: an `<svg>` element.
        wide: whether it takes the whole width.
    """

    name: str
    title: str
    note: str
    svg: str
    wide: bool = False


def draw_charts(report: Report) -> list[Chart]:
    """All charts that the report has figures for."""
    charts = (_throughput, _speedup, _phases, _acceptance, _lengths)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        return [chart for draw in charts if (chart := draw(report)) is not None]


def _throughput(report: Report) -> Chart | None:
    arms = [arm for arm in report.arms if arm.tokens_per_second is not None]
    if not arms:
        return None
    figure = Figure((_HALF, 0.8 + 0.42 * len(arms)))
    axes = figure.subplots()
    speeds = [arm.tokens_per_second or 0.0 for arm in arms]
    ends = [arm.ci95 or (speed, speed) for arm, speed in zip(arms, speeds, strict=True)]
    axes.barh(range(len(arms)), speeds, 0.62, color=[_ACCENT if arm is report.arms[0] else _PLAIN for arm in arms])
    axes.hlines(range(len(arms)), *zip(*ends, strict=True), color=_INK, linewidth=1.6)
    for at, (speed, (_, high)) in enumerate(zip(speeds, ends, strict=True)):
        _label(axes, max(speed, high), at, number(speed))
    _categories(axes, [arm.name for arm in arms])
    axes.set_xlim(0, 1.18 * max(high for _, high in ends) or 1)
    axes.set_xlabel("tokens per second")
    return Chart(
        "throughput",
        "Throughput",
        "All new tokens over all seconds, prompts included. Lines: 95 % bootstrap interval over prompts and repeats.",
        _svg(figure, "throughput", "Tokens per second of every arm"),
    )


def _speedup(report: Report) -> Chart | None:
    baseline = next((name for name in BASELINES if any(name in arm.speedup for arm in report.arms)), None)
    if baseline is None:
        return None
    measured = [(arm, arm.speedup[baseline]) for arm in report.arms if baseline in arm.speedup]
    figure = Figure((_HALF, 0.8 + 0.42 * len(measured)))
    axes = figure.subplots()
    for at, (arm, speedup) in enumerate(measured):
        color = _ACCENT if arm is report.arms[0] else _MUTED
        low, high = speedup.ci95 or (speedup.value, speedup.value)
        axes.hlines(at, low, high, color=color, linewidth=5, alpha=0.45)
        axes.plot(speedup.value, at, "o", color=color, markersize=6)
        _label(axes, max(high, speedup.value), at, _factor(speedup))
    axes.axvline(1, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    _categories(axes, [arm.name for arm, _ in measured])
    highest = max(max(speedup.value, *(speedup.ci95 or ())) for _, speedup in measured)
    axes.set_xlim(0, 1.42 * max(highest, 1))
    axes.set_xlabel(f"times the speed of {_short(baseline)}")
    return Chart(
        "speedup",
        f"Speed-up over {baseline}",
        f"Ratio of throughputs on the same prompts in the same run. Right of the dashed line is faster than {baseline}.",
        _svg(figure, "speedup", f"Speed-up of every arm over {baseline}"),
    )


def _factor(speedup: Estimate) -> str:
    return f"{speedup.value:.2f}" + (
        f"  ({speedup.ci95[0]:.2f}\u2013{speedup.ci95[1]:.2f})" if speedup.ci95 is not None else ""
    )


def _phases(report: Report) -> Chart | None:
    arms = [arm for arm in report.arms if arm.tokens]
    if not any(arm.phase_seconds for arm in arms):
        return None
    figure = Figure((_WHOLE, 1.15 + 0.42 * len(arms)))
    axes = figure.subplots()
    left = [0.0] * len(arms)
    known = [*PHASES, *sorted({phase for arm in arms for phase in arm.phase_seconds} - set(PHASES))]
    for phase in [*known, None]:
        widths = [1000 * _phase(arm, phase) / arm.tokens for arm in arms]
        if max(widths) <= 0.005 * max(1000 * arm.seconds / arm.tokens for arm in arms):
            continue
        color = _PLACEHOLDERS[phase if phase in _PLACEHOLDERS else "other"]
        axes.barh(range(len(arms)), widths, 0.62, left, color=color, label=_short(phase or "not broken down"))
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    for at, end in enumerate(left):
        _label(axes, end, at, number(end, 2))
    _categories(axes, [arm.name for arm in arms])
    axes.set_xlim(0, 1.1 * max(left) or 1)
    axes.set_xlabel("milliseconds per new token")
    _legend(figure, [axes])
    return Chart(
        "phases",
        "Time by level",
        "Where the milliseconds of one new token go, on average. An arm that does not tell is one block.",
        _svg(figure, "phases", "Milliseconds per new token by level, for every arm"),
        wide=True,
    )


def _phase(arm: ArmFigures, phase: str | None) -> float:
    """Seconds of a phase, or of what no phase accounts for."""
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
                axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=_short(level.name))
        axes.set_xlabel("position in the judged run")
        axes.set_ylim(0, 1.04)
    _legend(figure, all_axes)
    return Chart(
        "acceptance",
        "Acceptance by position",
        "Of the tokens at each position of a judged run, the share that the next level accepted. A token after a "
        "rejected one counts as rejected.",
        _svg(figure, "acceptance", "Share of accepted tokens by position, for every level"),
        wide=True,
    )


def _lengths(report: Report) -> Chart | None:
    panels = [arm for arm in _panels(report) if any(level.judgements for level in arm.levels)]
    if not panels:
        return None
    figure, all_axes = _row(panels, "share of judgements")
    for arm, axes in zip(panels, all_axes, strict=True):
        judged = [styled for styled in _styled(arm) if styled[0].judgements]
        width = 0.8 / len(judged)
        for offset, (level, color, _) in enumerate(judged):
            shift = (offset - (len(judged) - 1) / 2) * width
            places = [length + shift for length in range(len(level.accepted_lengths))]
            shares = [times / level.judgements for times in level.accepted_lengths]
            axes.bar(places, shares, 0.92 * width, color=color, label=_short(level.name))
        axes.set_xlabel("tokens accepted at once")
    _legend(figure, all_axes)
    return Chart(
        "lengths",
        "Accepted lengths",
        "How many of the tokens of one level the next one accepted in a judgement. Weight at the right: longer runs pay.",
        _svg(figure, "lengths", "Histogram of accepted lengths, for every level"),
        wide=True,
    )


def _panels(report: Report) -> Iterator[ArmFigures]:
    """Arms that speculate and say how."""
    return (arm for arm in report.arms if any(level.proposed for level in arm.levels))


def _styled(arm: ArmFigures) -> Iterator[tuple[LevelFigures, str, str]]:
    """An arm's levels, each with a colour and a marker of its own."""
    spare = itertools.cycle(name for name in _LEVELS if name not in {level.name for level in arm.levels})
    for at, level in enumerate(arm.levels):
        name = level.name if level.name in _LEVELS else next(spare)
        yield level, _PLACEHOLDERS[name], _MARKERS[at % len(_MARKERS)]


def _row(panels: Sequence[ArmFigures], label: str) -> "tuple[Figure, list[Axes]]":
    """A panel for each arm beside the next, with shares upwards and whole numbers rightwards."""
    figure = Figure((_WHOLE, 2.9))
    all_axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for arm, axes in zip(panels, all_axes, strict=True):
        axes.set_title(_short(arm.name), color=_INK)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.grid(axis="y")
    all_axes[0].set_ylabel(label)
    return figure, all_axes


def _categories(axes: "Axes", names: Sequence[str]) -> None:
    """One name for each horizontal bar, the first on top."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names], color=_INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x")


def _short(name: str) -> str:
    """A name that leaves room for the drawing."""
    line = " ".join(visible(name).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}\u2026"


def _label(axes: "Axes", x: float, y: float, text: str) -> None:
    """A figure just right of a bar's end."""
    behind = {"facecolor": _PLACEHOLDERS["card"], "edgecolor": "none", "pad": 1}
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", color=_INK, bbox=behind)


def _legend(figure: Figure, all_axes: "Sequence[Axes]") -> None:
    """One legend for all panels, each name once."""
    handles = {
        label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles), labelcolor=_INK)


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an element for inline use: no prologue, no metadata, no styles for the whole page, colours by name."""
    with matplotlib.rc_context({"svg.hashsalt": name}):  # ids depend on it, and are unique on the page
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}style" or "metadata" in child.tag:
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key != "id" or value in used:
                element.set(key.removeprefix(_XLINK), _COLOR.sub(_variable, value))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _variable(placeholder: re.Match[str]) -> str:
    return f"var(--{_NAMES[placeholder[0]]})"
