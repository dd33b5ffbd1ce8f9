"""Durations as people write them: 90, 90s, 10m, 1.5h."""

import re

from hispec.errors import UsageError

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_seconds(text: str, option: str) -> float:
    """A duration in seconds.

    Raises:
        UsageError: not a duration, or none above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip(), re.ASCII)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise UsageError(f"{option} is {text!r}, which is not a duration", "give one like 90s, 10m or 1.5h")
    return seconds
