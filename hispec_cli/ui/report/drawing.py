"""The common style of all charts, and the conversion of a drawing to an element of a page.

Drawn by matplotlib, coloured by the page's own style sheet: colours are drawn as placeholders and become CSS
variables, so that one drawing serves light, dark and print. Nothing in the SVG points outside it, and equal drawings
give equal bytes.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from hispec_cli.ui.safe_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VARIABLES = ("ink", "muted", "grid", "accent", "plain", "prefill", "draft", "intermediate", "target", "other", "card")
"""Colours that the page's style sheet defines."""
COLORS = {name: f"#0000{number:02x}" for number, name in enumerate(VARIABLES, 1)}
_NAMES = {placeholder: name for name, placeholder in COLORS.items()}
_COLOR = re.compile("|".join(_NAMES))
INK, MUTED, GRID, ACCENT, PLAIN = (COLORS[name] for name in VARIABLES[:5])
MARKERS = ("o", "s", "^", "D")
_STYLE: Any = {
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
HALF, WHOLE = 5.4, 11.2
"""Widths in inches: of a chart next to another, and of one across the page."""
_LONGEST = 24
"""Characters of a name in a chart."""


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Attributes:
        name: unique on the page.
        title: the subject of the chart.
        note: how to read it.
        svg: an `<svg>` element.
        wide: whether it takes the whole width.
    """

    name: str
    title: str
    note: str
    svg: str
    wide: bool = False


@contextmanager
def drawing() -> Iterator[None]:
    """Return the look that all charts share."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def categories(axes: "Axes", names: Sequence[str]) -> None:
    """Write a name next to each horizontal bar, the first on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x")


def short(name: str) -> str:
    """Return a name that leaves room for the drawing."""
    line = " ".join(visible(name).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}\u2026"


def label(axes: "Axes", x: float, y: float, text: str) -> None:
    """Write a figure just right of a bar's end."""
    behind = {"facecolor": COLORS["card"], "edgecolor": "none", "pad": 1}
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", color=INK, bbox=behind)


def legend(figure: Figure, all_axes: "Sequence[Axes]") -> None:
    """Draw one legend for all panels, each name once."""
    handles = {
        label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles), labelcolor=INK)


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an element for inline use: no prologue, no metadata, no styles for the whole page, colours
    by name.
    """
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
