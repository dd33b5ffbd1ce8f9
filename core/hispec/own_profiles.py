"""Profiles of the user's own: made of another one, and written where they are found by name."""

import re
from pathlib import Path

import yaml

from hispec.errors import ProfileError, UnavailableError, UsageError
from hispec.files import write_whole
from hispec.profile import parse_profile, read_text, to_yaml, user_folder


def copy_text(path: Path, name: str) -> str:
    """Return the text of a profile like another one under a new name: with its comments if possible.

    Args:
        path: the path of the other profile.
        name: the name of the new profile.

    Raises:
        ProfileError: the profile cannot be read, as for `read_profile`.
    """
    text, header = read_text(path), f"# Begun with the profile {path.stem}.\n"
    wanted = parse_profile(text, path).model_copy(update={"name": name})
    called = str(yaml.safe_dump({"name": name}))
    renamed, count = re.subn(r"^name[ \t]*:[^\n]*\n", lambda _: called, text, count=1, flags=re.MULTILINE)
    copy = renamed if count else called + text
    elsewhere = user_folder() / f"{name}.yaml"
    try:
        same = parse_profile(copy, elsewhere) == wanted
    except ProfileError:
        same = False
    return header + (
        copy if same else to_yaml(wanted)
    )  # files named relative to the other profile, or a name on several lines


def save_own(name: str, text: str, *, force: bool = False) -> Path:
    """Write a profile of the user's own, all of it or nothing.

    Args:
        name: letters, digits, dots, dashes and underscores.
        text: the content of the file.
        force: replace one that is there.

    Returns:
        Its file.

    Raises:
        UsageError: another name, or a profile that is there.
        UnavailableError: the file cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name, re.ASCII) or name.endswith((".yaml", ".yml")):
        raise UsageError(
            f"{name!r} cannot name a profile", "give letters, digits, dots, dashes and underscores, without .yaml"
        )
    path = user_folder() / f"{name}.yaml"
    if path.exists() and not force:
        raise UsageError(f"there is a profile {name} at {path}", "choose another name, or replace it with --force")
    hint = "make room, or see to its permissions"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"{path.parent} cannot be made: {error.strerror}", hint) from None
    write_whole(path, text.encode(), hint)
    return path
