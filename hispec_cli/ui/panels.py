"""Turns a view state into rows of styled text. Whatever comes from outside passes `visible` here, and is never markup.

Rows are laid out by hand rather than by rich's tables and texts: a frame must cost about a millisecond.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.cells import cell_len, get_character_cell_size, set_cell_size
from rich.segment import Segment
from rich.style import Style

from hispec.counts import counted
from hispec.metrics import LevelStats, Stats, exit_name
from hispec_cli.ui.output import is_unicode
from hispec_cli.ui.safe_text import visible
from hispec_cli.ui.state import Mark, TokenStatus, ViewState

Row = list[Segment]

_DIM = Style(dim=True)
_WIDE = 90
"""Columns from which there is room for exits and bars."""
_WIDEST = 100
"""The largest width of the panel in columns; wider text is harder to read."""
_FIGURE = 10
"""Columns of a figure."""
_LAST_COLUMN = "\x1b[9999G"
_UNCERTAIN = re.compile("[\u200d\ufe0f\U0001f000-\U0001ffff]")
"""Signs to which terminals give different widths."""


class PanelGlyphs(NamedTuple):
    """The signs of the panel."""

    proposed: str = "●"
    accepted: str = "✓"
    corrected: str = "✗"
    dropped: str = "·"
    line: str = "─"
    bar: str = "█"
    dot: str = "·"
    newline: str = "↵"


UNICODE = PanelGlyphs()
ASCII = PanelGlyphs("o", "+", "x", ".", "-", "#", "|", "\\n")


def glyphs_for(encoding: str) -> PanelGlyphs:
    """Return the glyphs that an encoding can write."""
    return UNICODE if is_unicode(encoding) else ASCII


class Span(NamedTuple):
    """A row of wrapped text: characters `start` to `end`, the next row's from `following`."""

    start: int
    end: int
    following: int


def printable(text: str) -> str:
    """Return text as the view writes it: harmless, and with spaces for tabs."""
    return visible(text).replace("\t", "    ")


def wrap(text: str, width: int) -> Iterator[Span]:
    """Break text into rows of at most `width` cells (at least 1), at spaces where there are any."""
    start, width = 0, max(width, 1)
    for line in text.split("\n"):
        stop = start + len(line)
        while stop - start > (fits := _fitting(text, start, stop, width)):
            end = start + fits
            space = text.rfind(" ", start, end)  # the space stays part of the row, see `rows_for_terminal`
            if space <= start and text[end] == " ":
                space = end
            if space > start and not text[start:space].isspace():
                yield Span(start, space, space + 1)
                start = space + 1
            else:
                yield Span(start, end, end)
                start = end
        yield Span(start, stop, stop + 1)
        start = stop + 1


class Line(NamedTuple):
    """A row as it is printed, and what was left out after it: a line break, the space at which it was wrapped, or
    nothing.
    """

    text: str
    gap: str

    @property
    def certain(self) -> bool:
        """Return whether all terminals give it the same width."""
        return not _UNCERTAIN.search(self.text)


def lines_of(text: str, spans: Iterable[Span]) -> list[Line]:
    """Return rows of a wrapped text; the end of the text counts as a line break."""
    size = len(text)
    return [Line(text[s.start : s.end], text[s.end : s.following] if s.following <= size else "\n") for s in spans]


def rows_for_terminal(lines: Sequence[Line], width: int | None) -> str:
    """Return the text that is sent to a terminal for some rows.

    Args:
        lines: the rows; the last one ends with a line feed too.
        width: the width of the terminal, which then wraps the rows of a paragraph itself, so that a paragraph that is
            copied from it is one line; None ends every row with a line feed.
    """
    *others, last = lines
    return "".join(line.text + _ending(line, width) for line in others) + last.text + "\n"


def _ending(line: Line, width: int | None) -> str:
    """Return the end of a row: nothing if it is full, a space in the last column if it was wrapped at one."""
    if width is None or line.gap == "\n":
        return "\n"
    if not line.gap:
        return ""
    return f"{_LAST_COLUMN} " if cell_len(line.text) < width else "\n"


def stream_runs(state: ViewState, glyphs: PanelGlyphs = UNICODE) -> list[tuple[str, TokenStatus]]:
    """Return the text after the settled part, with its standing. A struck line break is a sign, and the text
    continues.
    """
    runs = []
    for token in state.recent:
        text = printable(token.text)
        struck = token.status is TokenStatus.struck
        runs.append((text.replace("\n", glyphs.newline) if struck else text, token.status))
    if state.held:
        first_waiting = (at for at, token in enumerate(state.recent) if token.waiting)
        runs.insert(next(first_waiting, len(runs)), (printable(state.held), TokenStatus.accepted))
    return runs


def stream_row(
    text: str, span: Span, runs: Iterable[tuple[int, TokenStatus]], styles: Mapping[TokenStatus, Style]
) -> Row:
    """Return one row of the token stream.

    Args:
        text: the text of the whole stream.
        span: the row's range in it.
        runs: the end of each run in `text`, and its standing, in order.
        styles: the style of each standing.
    """
    row, at = [], span.start
    for end, status in runs:
        if end > at:
            row.append(Segment(text[at : min(end, span.end)], styles[status]))
            at = end
        if at >= span.end:
            break
    return row


def panel(
    state: ViewState, width: int, styles: Mapping[TokenStatus, Style], glyphs: PanelGlyphs = UNICODE
) -> list[Row]:
    """Return the rows below the stream: a heading, each level's marks in the cycle, and figures."""
    stats, width = state.stats, min(width, _WIDEST)
    labels = [*(_label(level, width) for level in stats.levels), visible(stats.target)]
    label_width = min(max(map(cell_len, labels)), width // 3)
    bar_width = 12 if width >= _WIDE else 0
    cycle_width = max(width - label_width - 2 - 2 * _FIGURE - bar_width, 0)
    heading = f"{'':{glyphs.line}<{label_width + 1}}{' this cycle ':{glyphs.line}<{cycle_width + 1}}"
    heading += f"{' accepted':{glyphs.line}>{_FIGURE}} {' time':{glyphs.line}>{_FIGURE - 1}}"
    rows = [[Segment(set_cell_size(heading, width - bar_width), _DIM)]]
    total = stats.total_seconds
    for number, (name, label) in enumerate(zip(state.levels, labels, strict=True)):
        target = number == len(stats.levels)
        status = TokenStatus.validated if target else TokenStatus.accepted if number else TokenStatus.draft
        looks = {
            Mark.proposed: Segment(glyphs.proposed, _color(styles[TokenStatus.draft])),
            Mark.accepted: Segment(glyphs.accepted, _color(styles[status])),
            Mark.corrected: Segment(glyphs.corrected, styles[TokenStatus.correction]),
            Mark.dropped: Segment(glyphs.dropped, _DIM),
        }
        cycle = state.cycle[number][:cycle_width] if state.cycle else ""
        rate = None if target else stats.levels[number].acceptance_rate
        seconds = stats.seconds.get(name, 0.0)
        rows.append(
            [
                Segment(set_cell_size(label, label_width), styles[status]),
                Segment("  "),
                *(looks[Mark(mark)] for mark in cycle),
                Segment(" " * (cycle_width - len(cycle))),
                Segment(f"{'' if rate is None else f'{rate:.0%}':>{_FIGURE}}{_time(seconds):>{_FIGURE}}"),
            ]
        )
        if bar_width and total:
            bar = glyphs.bar * round((bar_width - 2) * seconds / total)
            rows[-1].append(Segment(f"  {bar}", _color(styles[status])))
    rows.append(figures_row(state, width, glyphs))
    return rows


JUDGEABLE, ALONE = 16, 1.05
"""Tokens of an answer that tells whether speculation paid, and tokens per target pass below which it did not."""


def figures_row(state: ViewState, width: int, glyphs: PanelGlyphs = UNICODE) -> Row:
    """Return the row of figures, or the current step before there are any."""
    text = summary(state.stats, glyphs) if state.stats.prompt_tokens else "reading the prompt"
    return [Segment(set_cell_size(text, min(width, cell_len(text))), _DIM)]


def summary(stats: Stats, glyphs: PanelGlyphs = UNICODE) -> str:
    """Return a summary of the answer in one line."""
    parts = (
        counted(stats.new_tokens, "token"),
        f"{stats.tokens_per_second:.1f} tokens/s",
        f"{stats.tokens_per_target_pass:.2f} tokens per target pass",
    )
    return f" {glyphs.dot} ".join(parts)


def outcome(stats: Stats, glyphs: PanelGlyphs = UNICODE) -> str:
    """Return the line on a finished answer: a summary, and whether speculation paid."""
    alone = stats.levels and stats.new_tokens >= JUDGEABLE and stats.tokens_per_target_pass < ALONE
    note = f" {glyphs.dot} speculation did not pay here: the target wrote alone" if alone else ""
    return summary(stats, glyphs) + note


def _label(level: LevelStats, width: int) -> str:
    exit_ = f" {exit_name(level.exit_layer, level.weights)}" if level.exit_layer and width >= _WIDE else ""
    return visible(level.name) + exit_


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _color(style: Style) -> Style:
    """Return a style's colour without its shape, for signs that have a shape of their own."""
    return Style(color=style.bgcolor or style.color)


def _fitting(text: str, start: int, stop: int, width: int) -> int:
    """Return how many of the characters from `start` to `stop` fit into `width` cells; at least one."""
    piece = text[start : min(stop, start + width + 1)]
    if piece.isascii():
        return min(len(piece), width)
    cells = 0
    for count, character in enumerate(text[start:stop]):
        cells += get_character_cell_size(character)
        if cells > width:
            return max(count, 1)
    return stop - start
