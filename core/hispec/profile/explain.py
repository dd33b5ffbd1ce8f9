"""Turns pydantic's errors in a profile or a setting into a message and a hint."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hispec.profile.schema import Profile

LIMITS = {"ge": "at least", "gt": "more than", "le": "at most"}
"""The words for pydantic's names of bounds."""
NAMES_OF_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "dict": "a section of keys",
    "model": "a section of keys",
}
"""The words for the first part of pydantic's error types (`int_type`, `float_parsing`)."""


def explain(error: ValidationError, name: str | None = None) -> tuple[str, str]:
    """Return the first error of a validation as a message (with the key's path) and a hint (with the accepted values).

    Args:
        error: an error in a profile or in settings.
        name: the name that the source of the setting has for it; None for a key of a profile, which YAML may have
            misread.
    """
    first = error.errors()[0]
    path = ".".join(map(str, first["loc"] if name is None else (name, *first["loc"][1:])))
    value, kind, limits = first["input"], first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        section = _section_at(first["loc"][:-1])
        known = [field.alias or name for name, field in section.model_fields.items()]
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return f"unknown key {path}", (f"did you mean {near[0]}? " if near else "") + f"known here: {', '.join(known)}"
    if kind == "missing":
        return f"{path} is missing", f"add {path}"
    if kind == "value_error":
        fault = limits["error"]
        message, hint = getattr(fault, "message", str(fault)), getattr(fault, "hint", "mend that part of the profile")
        return f"{path}: {message}" if path else message, hint
    if kind == "literal_error":
        return f"{path} is {value!r}", f"accepted: {limits['expected']}"
    if kind == "string_too_short":
        return f"{path} is empty", "give at least one character"
    if kind == "invalid_key":
        return f"{path} is a key that is not text", "quote it, or remove it"
    if words := [f"{word} {limits[key]}" for key, word in LIMITS.items() if key in limits]:
        return f"{path} is {value!r}", f"accepted: {words[0]}"
    if kind == "finite_number":
        return f"{path} is {value!r}", "give a number"
    expected = NAMES_OF_TYPES.get(kind.split("_")[0], kind)
    hint = _yaml_hint(value, expected) if name is None else f"give {expected}"
    return f"{path} is {value!r}, which is not {expected}", hint


def _yaml_hint(value: Any, expected: str) -> str:
    if isinstance(value, bool):
        return f"give {expected}; YAML reads yes, no, on and off as true and false: quote them where text is meant"
    if isinstance(value, str) and expected in ("a number", "a whole number"):
        return f"give {expected} without quotes; YAML reads 1e-3 as text: write 0.001 or 1.0e-3"
    return f"give {expected}"


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the section of the schema at a key's path."""
    section: type[BaseModel] = Profile
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        choices = [annotation, *get_args(annotation)]
        section = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel))
    return section
