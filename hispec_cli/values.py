"""Values that options take as text: a time, a list of numbers."""

import re

from hispec.errors import UsageError
from hispec.limits import MAX_INT

LONGEST_BUDGET = 30 * 24 * 3600
"""Seconds."""
MAX_EXITS = 1000
"""More layers than any model has."""
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> float:
    """Return the seconds of `90s`, `10m`, `1.5h`, or of a number without a unit.

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(found[1]) * UNITS[found[2] or "s"] if found is not None else 0.0
    if not 0 < seconds <= LONGEST_BUDGET:
        raise UsageError(f"--budget is {text!r}", "give a time such as 90s, 10m or 1h, 30 days at most")
    return seconds


def exits_of(text: str) -> list[int]:
    """Return the exits of `A:B` or `A:B:STEP`, B among them, or of a list.

    Raises:
        UsageError: anything else.
    """
    if ":" not in text:
        return numbers_of(text, "--exit-layers")
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(map(_is_count, parts)):
        raise UsageError(f"--exit-layers is {text!r}", "give A:B:STEP, for example 2:12:2, or a list: 1,2,4")
    first, last, step = (*map(int, parts), 1)[:3]
    if last < first:
        raise UsageError(
            f"--exit-layers is {text!r}, which holds no exit", "give the lower one first, for example 2:12:2"
        )
    exits = range(first, last + 1, step)
    if len(exits) > MAX_EXITS:
        raise UsageError(
            f"--exit-layers is {text!r}, which holds {len(exits):,} exits", "give fewer, for example 2:12:2"
        )
    return list(exits)


def numbers_of(text: str, option: str) -> list[int]:
    """Return whole numbers from 1, written with commas between, ascending.

    Raises:
        UsageError: anything else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(map(_is_count, parts)):
        raise UsageError(f"{option} is {text!r}", "give whole numbers from 1, for example 1,2,4")
    return sorted({int(part) for part in parts})


def _is_count(text: str) -> bool:
    """Return whether text is a whole number from 1 that the engine can count to."""
    return re.fullmatch(r"\s*\d{1,10}\s*", text) is not None and 1 <= int(text) <= MAX_INT
