"""Text from outside (a model, a prompt, a file's name) made harmless for a terminal."""

import re

_CONTROLS = re.compile(
    "["
    "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # control characters, line feed and tab excepted
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # directions of writing
    "\\ud800-\\udfff"  # lone surrogates
    "]"
)


def visible(text: str) -> str:
    """Show control characters, direction overrides and lone surrogates as escapes instead of obeying them."""
    return _CONTROLS.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
