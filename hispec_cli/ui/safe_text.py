"""Text from outside (a model, a prompt, a file's name) made harmless for a terminal."""

import unicodedata

_DIRECTION_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Show control characters, direction overrides and lone surrogates as escapes instead of obeying them."""
    return "".join(_escaped(character) if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTION_CONTROLS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
