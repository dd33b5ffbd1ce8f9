"""docs/profiles.md lists every key of a profile, with its default."""

import json
import re
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel

from hispec.profile import Profile

PAGE = Path(__file__).parents[2] / "docs" / "profiles.md"
KEYS = PAGE.read_text().partition("## Every key")[2]


def keys_of(section, prefix=""):
    """Every key of a section of the schema, dotted, with its default as the page writes it."""
    found = {}
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        if field.is_required():
            default = "required"
        elif isinstance(field.default, BaseModel) or field.default == {}:
            default = "empty"
        else:
            default = f"`{field.default}`" if isinstance(field.default, str) and field.default else None
            default = default or f"`{json.dumps(field.default)}`"
        found[key] = default
        for inner, at in sections_in(field.annotation, key + "."):
            found |= keys_of(inner, at)
    return found


def sections_in(annotation, prefix):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, prefix)]
    inner = get_args(annotation)
    if get_origin(annotation) is dict:
        return sections_in(inner[1], prefix + "*.")
    return [found for part in inner for found in sections_in(part, prefix)]


def test_the_page_has_the_keys_and_defaults_of_the_schema():
    rows = re.findall(r"^\| `([\w.*]+)` \| (.+?) \| (.+?) \| (.+?) \|$", KEYS, re.MULTILINE)
    listed = {key: default for key, _, default, _ in rows}
    assert len(rows) == len(listed), "a key is listed twice"
    assert listed == keys_of(Profile) | {"name": "the file's name"}


def test_the_page_names_every_choice_of_a_key():
    rows = dict(re.findall(r"^\| `([\w.*]+)` \| (.+?) \|", KEYS, re.MULTILINE))
    schema = Profile.model_json_schema()
    parts = schema["$defs"] | {"Profile": schema}
    for section, names in {"TargetSection": ("dtype", "quantization"), "DecodingSection": ("policy",)}.items():
        for name in names:
            known = parts[section]["properties"][name]
            choices = next(part["enum"] for part in (known, *known.get("anyOf", ())) if "enum" in part)
            assert re.findall(r"`(\w+)`", rows[f"{section.removesuffix('Section').lower()}.{name}"]) == choices
