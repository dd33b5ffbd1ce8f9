"""Palettes: how a token's standing looks.

In every palette the shape alone (italic, underline, bold, struck through) tells the standings apart, so they hold
without colour and for every kind of colour vision.
"""

from collections.abc import Mapping
from enum import StrEnum

from rich.style import Style

from hispec_cli.ui.state import TokenStatus


class Palette(StrEnum):
    """The set of colours to use."""

    default = "default"
    """At least 3.4:1 on black and on white, distinct in 16 colours and for colour-blind readers."""
    high_contrast = "high-contrast"
    """The style of each standing with its own background; the contrast is at least 7:1 with any colours of the
    terminal.
    """
    mono = "mono"
    """Shape only."""


_SHAPES = {
    TokenStatus.draft: "italic",
    TokenStatus.accepted: "underline",
    TokenStatus.correction: "bold",
    TokenStatus.struck: "strike dim",
    TokenStatus.validated: "none",
}
_COLORS: dict[Palette, dict[TokenStatus, str]] = {
    Palette.default: {
        TokenStatus.draft: "#3B8EEA",
        TokenStatus.accepted: "#C27C00",
        TokenStatus.correction: "#C154C1",
    },
    Palette.high_contrast: {
        TokenStatus.draft: "#000000 on #8FC7FF",
        TokenStatus.accepted: "#000000 on #FFC64D",
        TokenStatus.correction: "#FFFFFF on #7A1F7A",
    },
    Palette.mono: {},
}

PROMPT_STYLES = {
    Palette.default: "bold #2E8B57",
    Palette.high_contrast: "bold",
    Palette.mono: "bold",
}
"""The style of the user's own words in a chat, for prompt_toolkit and rich. Bold alone has the most contrast."""


def styles_of(palette: Palette) -> Mapping[TokenStatus, Style]:
    """Return the style of each standing."""
    colors = _COLORS[palette]
    return {status: Style.parse(f"{shape} {colors.get(status, '')}") for status, shape in _SHAPES.items()}
