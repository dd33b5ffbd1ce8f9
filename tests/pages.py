"""Write the parts of the documentation that follow from settings and shipped profiles: `python -m tests.pages`."""

import json
import re
from pathlib import Path
from typing import get_args
from unittest.mock import patch

from hispec.limits import MAX_INT, MAX_SEED
from hispec.memory import estimate, gigabytes
from hispec.precedence import resolve_settings
from hispec.profile import (
    DraftSection,
    IntermediateSection,
    Profile,
    levels_of,
    list_profiles,
    read_profile,
    shipped_folder,
)
from hispec.settings import SETTINGS, Range, Setting

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """\
| option | variable | key of a profile | in a chat | accepted | default | what it does |
|---|---|---|---|---|---|---|
"""


SHIPPED = """\
| profile | target | levels below it | memory |
|---|---|---|---:|
"""


def accepted(setting: Setting) -> str:
    """Return a description of the accepted values."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.kind is bool:
        return "`true`, `false`"
    return setting.accepts or _bounds(setting)


def _bounds(setting: Setting) -> str:
    held = get_args(setting.type)[0] if setting.nullable else setting.type
    bounds = next(found for found in held.__metadata__ if isinstance(found, Range))
    kind = "whole number" if setting.kind is int else "number"
    if bounds.le in (MAX_INT, MAX_SEED):
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


def shipped_row(profile: Profile) -> str:
    """Return the row of a shipped profile, with the memory that it needs on a CPU that has bfloat16 and no VNNI."""
    settings, _ = resolve_settings({"device": "cpu", "load_format": "dummy"}, profile)
    flags = {"avx2", "avx512bw", "avx512_bf16"}
    with (
        patch("hispec.machine.processor_flags", return_value=flags),
        patch("hispec.models.dtypes.processor_flags", return_value=flags),
    ):
        need = estimate(profile, settings)
    assert need is not None, f"{profile.name} names a model whose configuration does not ship"
    levels = " > ".join(word for level in levels_of(profile, "hispec") for word in _readings(level))
    return f"| `{profile.name}` | {profile.target.model} | {levels} | {gigabytes(need.total)} |\n"


def _readings(level: DraftSection | IntermediateSection) -> list[str]:
    """Return a description of a level."""
    ngrams = ["n-grams"] if isinstance(level, DraftSection) and level.ngram is not None else []
    if level.model is not None:
        return [*ngrams, level.model]
    bits = f"{level.weights.removeprefix('int')}-bit " if level.weights is not None else ""
    if level.exit_layer is not None:
        return [*ngrams, f"{bits}exit {level.exit_layer}"]
    return [*ngrams, f"{bits}copy"] if bits else ngrams


def profiles_page(text: str) -> str:
    """Return the page of profiles with what ships, and the keys that are settings, each section's after its other keys."""
    shipped = [read_profile(path) for _, path in list_profiles() if path.parent == shipped_folder()]
    table = SHIPPED + "".join(map(shipped_row, shipped))
    text = re.sub(r"\| profile \| target .*?\n\n", lambda _: table + "\n", text, count=1, flags=re.DOTALL)
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
