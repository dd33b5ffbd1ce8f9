"""Turns the state of a calibration into rows of text: the heat map, the phases, the finalists, the agreement by depth.

Every sign of the map means the same without its colour. Whatever comes from outside passes `visible` here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from hispec.bench.caveats import few_prompts
from hispec.calibration.recording import LevelSpec
from hispec.calibration.run import PHASES
from hispec.calibration.search import PLAIN, Configuration
from hispec.calibration.timing import Speed
from hispec.counts import counted
from hispec.metrics import exit_name
from hispec_cli.ui.calibration_state import ADAPTIVE, CalibrationState, CandidateStatus, CellKey, DraftExit, Finalist
from hispec_cli.ui.safe_text import visible

T = TypeVar("T")

TITLES = {
    "costs": "measuring what spans, heads and steps cost",
    "traces": "recording what every exit says",
    "replay": "replaying configurations",
    "timing": "timing the best",
    "check": "checking on prompts not seen before",
}
SHORT = {
    "costs": "measuring costs",
    "traces": "recording exits",
    "replay": "replaying",
    "timing": "timing the best",
    "check": "on unseen prompts",
}
HEAT = (0.5, 0.7, 0.85, 0.95)
"""Speeds relative to the fastest at which the colour changes."""
_WIDE = 100
"""The least width, in columns, at which configurations are described in words."""
_NARROWEST, _WIDEST = 3, 9
"""Columns of a cell."""
_FIGURE = 4
"""Columns of a figure of up to 100 and a mark."""
_GROUPED = 6
"""Columns of a cell that stands for several."""
_NAME = 18
"""Columns of a row's name."""
_SHARE = 13
"""Columns of a share."""
_DIM, _BOLD = Style(dim=True), Style(bold=True)


class MapGlyphs(NamedTuple):
    """The signs of the screen."""

    best: str = "★"
    tied: str = "="
    scored: str = " "
    pruned: str = "↓"
    pending: str = "·"
    done: str = "✓"
    now: str = "▸"
    bar: str = "━"
    half: str = "╸"
    dot: str = "·"
    cut: str = "…"

    def mark(self, status: CandidateStatus) -> str:
        """Return the sign of a cell or a finalist."""
        mark: str = getattr(self, status.value)
        return mark


UNICODE = MapGlyphs()
ASCII = MapGlyphs("*", "=", " ", "v", ".", "+", ">", "#", "", "|", "~")


class Ramp(NamedTuple):
    """Styles from slow to fast, one more than `HEAT` has steps, and what sets the best apart."""

    styles: tuple[Style, ...]
    marked: Style


FULL = Ramp(
    tuple(
        Style.parse(style)
        for style in (
            "#ffffff on #440154",
            "#ffffff on #3b528b",
            "#000000 on #21918c",
            "#000000 on #5ec962",
            "#000000 on #fde725",
        )
    ),
    Style(bold=True),
)
"""Viridis, which every kind of colour vision sees in order; text on it has at least 5:1."""
SIXTEEN = Ramp(
    tuple(
        Style.parse(style)
        for style in (
            "bright_white on magenta",
            "bright_white on blue",
            "black on cyan",
            "black on green",
            "black on yellow",
        )
    ),
    Style(underline=True),
)
"""Underlined, since many terminals brighten bold text, and black would become grey."""


def ramp_for(color_system: str | None) -> Ramp:
    """Return colours that a terminal can tell apart."""
    return SIXTEEN if color_system in ("standard", "windows") else FULL


def heat(relative: float) -> int:
    """Return the step of a ramp for a relative speed."""
    return sum(relative >= step for step in HEAT)


def screen(
    state: CalibrationState, at: float, target: str, width: int, height: int, glyphs: MapGlyphs, ramp: Ramp
) -> list[Text]:
    """Return all rows of the live screen.

    Args:
        state: the state to show.
        at: seconds since the start.
        target: the model whose name is left out before its exits.
        width: columns there are.
        height: rows there are.
        glyphs: the glyphs to use.
        ramp: the colour ramp to use.
    """
    rows = [clock_row(state, at, width, glyphs), phases_row(state, at, width, glyphs)]
    listed = state.checked or state.finalists
    lists = finalist_rows(listed, target, width, glyphs) if listed else []
    lists = lists[: max(3, (height - 4) // 2)]
    if state.cells:
        rows += heat_map(state, target, width, max(4, height - len(rows) - len(lists) - 1), glyphs, ramp)
    return [*rows, *lists][:height]


def clock_row(state: CalibrationState, at: float, width: int, glyphs: MapGlyphs) -> Text:
    """Return the current phase, and the rest of the budget."""
    left = state.budget - at
    time = f"{_clock(at)} of {_clock(state.budget)}, " + (
        f"at most {_clock(left)} left" if left > 0 else "finishing beyond the budget"
    )
    titles = TITLES if width >= _WIDE else SHORT
    doing = titles.get(state.phase, "starting")
    if state.phase == "replay":
        doing = f"{doing}: {state.scored:,}"
    return _fit(Text.assemble((time, _BOLD), f" {glyphs.dot} {doing}"), width)


def phases_row(state: CalibrationState, at: float, width: int, glyphs: MapGlyphs) -> Text:
    """Return every phase: how long it took, how far it is, or that it is to come."""
    said: list[tuple[str, str, Style]] = []
    for phase in PHASES:
        if phase in state.ended:
            seconds = state.ended[phase] - state.began[phase]
            said.append((f"{glyphs.done} {phase}", f" {seconds:.0f} s", Style()))
        elif phase == state.phase:
            said.append((f"{glyphs.now} {phase}", f" {state.progress_of(phase, at):.0%}", _BOLD))
        else:
            said.append((f"{glyphs.dot} {phase}", "", _DIM))
    if sum(len(name) + len(rest) + 2 for name, rest, _ in said) > width:
        said = [(name, "" if name.startswith(glyphs.done) else rest, style) for name, rest, style in said]
    return _fit(Text("  ").join(Text(name + rest, style) for name, rest, style in said), width)


def heat_map(
    state: CalibrationState, target: str, width: int, height: int, glyphs: MapGlyphs, ramp: Ramp
) -> list[Text]:
    """Return the fastest replay of each (draft, period), as a share of the fastest of all, and how it does.

    Where there is no room for every row or column, neighbours share one, and the faster of them is shown.
    """
    best = state.best
    assert best is not None
    rows = _grouped(state.drafters, height - 2)
    names = [row_name(group, target, glyphs) for group in rows]
    label = min(_NAME, max(cell_len(name) for name in [*names, "draft"])) + 1
    label -= (width - label) // len(state.periods) < _FIGURE  # cells begin with a blank, but where they hold 100
    cell = (width - label) // len(state.periods)
    if cell < _NARROWEST:
        columns, cell = _grouped(state.periods, max(1, (width - label) // _GROUPED)), _GROUPED
    else:
        columns, cell = [[period] for period in state.periods], min(cell, _WIDEST)
    head = "".join(_column_name(group, cell).rjust(cell) for group in columns)
    drawn = [Text.assemble((set_cell_size("draft", label), _BOLD), (head, _BOLD))]
    for group, name in zip(rows, names, strict=True):
        row = Text(set_cell_size(name, label))
        for periods in columns:
            place = _fastest(state, [CellKey(drafter, period) for drafter in group for period in periods])
            row.append_text(_cell(state, place, cell, glyphs, ramp))
        drawn.append(row)
    drawn.append(_legend(state, width, glyphs))
    return [_fit(row, width) for row in drawn]


def _cell(state: CalibrationState, place: CellKey, width: int, glyphs: MapGlyphs, ramp: Ramp) -> Text:
    score, best, status = state.cells.get(place), state.best, state.status(place)
    mark = glyphs.mark(status)
    if score is None or best is None:
        return Text(mark.rjust(width), _DIM)
    relative = score.speed / best.speed
    figure = f"{min(relative, 1):.0%}".removesuffix("%")
    said = (figure if len(figure) < width else "") + mark
    marked = ramp.marked if status in (CandidateStatus.best, CandidateStatus.tied) else Style()
    return Text(said.rjust(width), ramp.styles[heat(relative)] + marked)


def _fastest(state: CalibrationState, places: Sequence[CellKey]) -> CellKey:
    """Return the cell to show for several: the best by its status, then by its speed."""
    order = [
        CandidateStatus.pending,
        CandidateStatus.pruned,
        CandidateStatus.scored,
        CandidateStatus.tied,
        CandidateStatus.best,
    ]

    def rank(place: CellKey) -> tuple[int, float]:
        score = state.cells.get(place)
        return order.index(state.status(place)), score.speed if score else 0.0

    return max(places, key=rank)


def _legend(state: CalibrationState, width: int, glyphs: MapGlyphs) -> Text:
    best = state.best
    assert best is not None
    timed = any(one.speed is not None for one in state.finalists)
    ties = "may be as fast" if timed else "within 3 %"
    said = [f"{glyphs.best} fastest  {glyphs.tied} {ties}  {glyphs.pruned} left behind  {glyphs.pending} not replayed"]
    if PLAIN in state.scores:
        said.append(f"the target alone: {state.scores[PLAIN].speed / best.speed:.0%}")
    said.append(f"% of {best.speed:,.0f} tokens/s by replay; columns: tokens at which the target verifies")
    while len(said) > 1 and len("  ".join(said)) > width:
        said.pop()
    return Text("  ".join(said), _DIM)


def finalist_rows(listed: Sequence[Finalist], target: str, width: int, glyphs: MapGlyphs) -> list[Text]:
    """Return a table of those that are timed."""
    named = [described(one.configuration, target, width) for one in listed]
    figures = 9 + 14 + (9 if width >= 70 else 0)
    label = min(max(cell_len(name) for name in [*named, "timed"]), max(8, width - figures - 2))
    head = f"{'  timed':<{label + 2}}{'tokens/s':>9}{'95 %':>14}" + (f"{'replay':>9}" if width >= 70 else "")
    rows = [_fit(Text(head, _BOLD), width)]
    for name, one in zip(named, listed, strict=True):
        cut = name if cell_len(name) <= label else set_cell_size(name, label - 1) + glyphs.cut
        speed = f"{one.speed.value:.1f}" if one.speed else ""
        row = f"{glyphs.mark(one.status)} {set_cell_size(cut, label)}{speed:>9}{interval(one.speed, 0):>14}"
        if width >= 70:
            row += f"{one.predicted:9.1f}" if one.predicted is not None else " " * 9
        looks = {CandidateStatus.best: _BOLD, CandidateStatus.pruned: _DIM, CandidateStatus.pending: _DIM}
        rows.append(_fit(Text(row, looks.get(one.status, Style())), width))
    if few := few_prompts(max(one.prompts for one in listed)):
        rows.append(_fit(Text(few, _DIM), width))
    return rows


def described(configuration: Configuration, target: str, width: int) -> str:
    """Return a description for a screen of some columns."""
    return visible(configuration.describe(target) if width >= _WIDE else brief(configuration, target))


def brief(configuration: Configuration, target: str) -> str:
    """Return the shortest description: `exit 1 (2) > exit 2/256 (12)`, with periods and the sizes of reduced heads."""
    if configuration == PLAIN:
        return configuration.describe(target)
    names = [f"n-grams ({configuration.ngram[1]})"] if configuration.ngram else []
    for at, spec in enumerate(configuration.specs):
        name = exit_name(spec.exit_layer, spec.weights) + (f"/{spec.head_size}" if spec.head_size else "")
        name += "" if spec.model == target else f" of {spec.model}"
        names.append(name + (f" ({configuration.periods[at]})" if configuration.periods else ""))
    if configuration.periods and not configuration.specs:
        names.append(f"target ({configuration.periods[-1]})")
    how = ", no profile" if configuration.uncalibrated else ", adaptive" if configuration.adaptive else ""
    return " > ".join(names) + how


def agreement_rows(agreement: Mapping[LevelSpec, float], target: str, width: int, glyphs: MapGlyphs) -> list[Text]:
    """Return how often each exit agrees with the target: a bar for its whole head, numbers for reduced ones."""
    depth = max(spec.exit_layer for spec in agreement if spec.model == target)
    lower = [spec for spec in agreement if DraftExit.of(spec) != DraftExit(target, depth)]
    drafters = sorted(set(map(DraftExit.of, lower)), key=lambda d: (d.model != target, d.weights, d))
    sizes = sorted({spec.head_size for spec in lower})
    names = [row_name([drafter], target, glyphs) for drafter in drafters]
    label = min(_NAME, max(map(cell_len, names), default=0)) + 1
    columns = sizes[: max(1, (width - label) // _SHARE)]
    room = max(0, min(50, width - label - _SHARE * len(columns)))
    head = "".join(f"{counted(size, 'token') if size else 'whole':>{_SHARE}}" for size in columns)
    title = "agreement with the target, through heads of"
    rows = [Text(title, _BOLD), Text(" " * (label + room) + head, _BOLD)]
    if len(title) < label + room:
        rows = [Text(f"{title:<{label + room}}{head}", _BOLD)]
    for drafter, name in zip(drafters, names, strict=True):
        shares = [
            agreement.get(LevelSpec(drafter.model, drafter.exit_layer, size, drafter.weights)) for size in columns
        ]
        whole = shares[0] or 0.0
        halves = round(2 * room * whole) if glyphs.half else 2 * round(room * whole)
        bar = glyphs.bar * (halves // 2) + glyphs.half * (halves % 2)
        said = "".join(f"{'' if share is None else f'{share:.1%}':>{_SHARE}}" for share in shares)
        rows.append(Text.assemble(set_cell_size(name, label), (f"{bar:<{room}}", "cyan"), said))
    return [_fit(row, width) for row in rows]


def interval(speed: Speed | None, digits: int) -> str:
    """Return an interval as text; empty if there is none."""
    if speed is None or speed.ci95 is None:
        return ""
    return f"{speed.ci95[0]:.{digits}f}-{speed.ci95[1]:.{digits}f}"


def _grouped(items: Sequence[T], max_groups: int) -> list[list[T]]:
    """Return neighbours in groups, at most `max_groups` of them."""
    size = -(-len(items) // max(1, max_groups))
    return [list(items[at : at + size]) for at in range(0, len(items), size)]


def row_name(group: Sequence[DraftExit], target: str, glyphs: MapGlyphs) -> str:
    """Return the name of a row of neighbouring drafters."""
    first, last = group[0], group[-1]
    if first.model != target:
        name = visible(first.model.rpartition("/")[2] or first.model)
        return name if cell_len(name) <= _NAME else set_cell_size(name, _NAME - 1) + glyphs.cut
    if last == first:
        return exit_name(first.exit_layer, first.weights)
    if last.weights != first.weights:
        return f"{exit_name(first.exit_layer, first.weights)}-{last.exit_layer} {last.weights}"
    return exit_name(first.exit_layer) + f"-{last.exit_layer} {last.weights}".rstrip()


def _column_name(group: Sequence[int], width: int) -> str:
    names = ["adaptive" if period == ADAPTIVE else str(period) for period in group]
    if len(names) == 1:
        return names[0] if len(names[0]) < width else names[0][: width - 1]
    return f"{names[0]}-{names[-1][:2]}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _fit(text: Text, width: int) -> Text:
    text.truncate(width, overflow="crop")
    text.no_wrap = True
    return text


def joined(rows: Iterable[Text]) -> Text:
    """Return rows as one text."""
    return Text("\n", no_wrap=True).join(rows)
