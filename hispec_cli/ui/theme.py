"""Palettes: how a token's standing looks.

In every palette the shape alone (italic, underline, bold, struck through) tells the standings apart, so they hold
without colour and for every kind of colour vision.
"""

from collections.abc import Mapping
from enum import StrEnum

from rich.style import Style

from hispec_cli.ui.state import Standing


class Palette(StrEnum):
    """Which colours to use."""

    default = "default"
    """At least 3.4:1 on black and on white, distinct in 16 colours and for colour-blind readers."""
    high_contrast = "high-contrast"
    """Each standing on its own background, at least 7:1 whatever the terminal's colours are."""
    mono = "mono"
    """Shape only."""


_SHAPES = {
    Standing.draft: "italic",
    Standing.accepted: "underline",
    Standing.correction: "bold",
    Standing.struck: "strike dim",
    Standing.validated: "none",
}
_COLORS: dict[Palette, dict[Standing, str]] = {
    Palette.default: {
        Standing.draft: "#3B8EEA",
        Standing.accepted: "#C27C00",
        Standing.correction: "#C154C1",
    },
    Palette.high_contrast: {
        Standing.draft: "#000000 on #8FC7FF",
        Standing.accepted: "#000000 on #FFC64D",
        Standing.correction: "#FFFFFF on #7A1F7A",
    },
    Palette.mono: {},
}

PROMPT_STYLES = {
    Palette.default: "bold #2E8B57",
    Palette.high_contrast: "bold",
    Palette.mono: "bold",
}
"""How a person's own words look in a chat, for prompt_toolkit and rich. Bold alone has the most contrast there is."""


def styles_of(palette: Palette) -> Mapping[Standing, Style]:
    """The style of each standing."""
    colors = _COLORS[palette]
    return {standing: Style.parse(f"{shape} {colors.get(standing, '')}") for standing, shape in _SHAPES.items()}
