"""Write what the documentation says of settings from their definition: `python -m tests.pages`."""

import json
import re
from pathlib import Path
from typing import get_args

from hispec.limits import LARGEST_SEED, MOST
from hispec.settings import SETTINGS, Range, Setting

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """\
| option | variable | key of a profile | in a chat | accepted | default | what it does |
|---|---|---|---|---|---|---|
"""


def accepted(setting: Setting) -> str:
    """Return the accepted values in words."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.kind is bool:
        return "`true`, `false`"
    return setting.accepts or _bounds(setting)


def _bounds(setting: Setting) -> str:
    held = get_args(setting.type)[0] if setting.nullable else setting.type
    bounds = next(found for found in held.__metadata__ if isinstance(found, Range))
    kind = "whole number" if setting.kind is int else "number"
    if bounds.le in (MOST, LARGEST_SEED):
        return f"{kind} from {bounds.ge:g}"
    if bounds.gt is not None:
        return f"{kind} above {bounds.gt:g}, at most {bounds.le:g}"
    return f"{kind} from {bounds.ge:g} to {bounds.le:g}"


def row(setting: Setting) -> str:
    """Return the row of a setting in the table of all."""
    cells = (
        f"`{setting.option}`" if setting.panel else "",
        f"`{setting.variable}`",
        f"`{setting.section}.{setting.name}`" if setting.section else "",
        "" if setting.at_loading else f"`/set {setting.name}`",
        accepted(setting),
        _default(setting),
        setting.help.replace("|", r"\|"),
    )
    return "| " + " | ".join(cells) + " |\n"


def key_row(setting: Setting) -> str:
    """Return the row of a setting in the table of a profile's keys."""
    default, told = _default(setting), setting.help
    if setting.section != "target":
        default, told = "`null`", f"{told.removesuffix('.')}; {default} where nothing says otherwise."
    return f"| `{setting.section}.{setting.name}` | {accepted(setting)} | {default} | {told} |\n"


def _default(setting: Setting) -> str:
    if setting.unset or setting.default in (None, ""):
        return setting.unset
    number = isinstance(setting.default, float)
    return f"`{setting.default:g}`" if number else f"`{json.dumps(setting.default).strip(chr(34))}`"


def settings_page(text: str) -> str:
    """Return the page of settings with the table of all."""
    table = HEAD + "".join(map(row, SETTINGS.values()))
    return re.sub(r"\| option \| variable .*?\n\n", lambda _: table + "\n", text, count=1, flags=re.DOTALL)


def profiles_page(text: str) -> str:
    """Return the page of profiles with the keys that are settings, each section's after its own other keys."""
    for section in dict.fromkeys(setting.section for setting in SETTINGS.values() if setting.section):
        keys = [setting for setting in SETTINGS.values() if setting.section == section]
        for setting in keys:
            text = re.sub(rf"\| `{section}\.{setting.name}` .*\n", "", text)
        last = [*re.finditer(rf"\| `{section}(\.\w+)?` .*\n", text)][-1].end()
        text = text[:last] + "".join(map(key_row, keys)) + text[last:]
    return text


PAGES = {"settings.md": settings_page, "profiles.md": profiles_page}

if __name__ == "__main__":
    for name, write in PAGES.items():
        path = DOCS / name
        path.write_text(write(path.read_text()))
