"""Finds, reads and writes profile files.

A profile is looked up by path, then in the user's own folder, then among those that ship with the package.
"""

import difflib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import yaml
from pydantic import ValidationError

from hispec.errors import ProfileError
from hispec.profile.explain import explain
from hispec.profile.schema import Profile

PACKAGE = Path(__file__).parents[1]
"""The folder of the package."""
BUILTIN = "builtin:"
"""Prefix of a model that ships inside the package."""


def load_profile(name: str) -> Profile:
    """Find a profile by name or path and read it.

    Args:
        name: a path (it has a slash, or ends in .yaml or .yml), or the name of a user's or shipped profile.

    Raises:
        ProfileError: no such profile, or one that is malformed.
    """
    return read_profile(find_profile(name))


def find_profile(name: str) -> Path:
    """Return the file of a profile; errors as `load_profile`."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if (path / "config.json").is_file() or path.suffix == ".gguf":
            raise ProfileError(f"{name} is a model, not a profile", f"use --model {name}")
        if not path.is_file():
            model = "" if path.suffix in (".yaml", ".yml") or name.count("/") > 1 else f"; a model: --model {name}"
            raise ProfileError(
                f"there is no profile at {name}",
                f"give the path of a YAML file, or a name from: hispec profile list{model}",
            )
        return path
    known = dict(list_profiles())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        if Path(name).is_file():
            hint = f"did you mean the file ./{name}? "
        if name.startswith(BUILTIN) or (Path(name) / "config.json").is_file():
            hint = f"did you mean --model {name}? "
        raise ProfileError(f"there is no profile named {name!r}", f"{hint}see them all with: hispec profile list")
    return known[name]


def list_profiles() -> Iterator[tuple[str, Path]]:
    """Return names and files of all profiles, those that ship with the package first: a user's own replaces its
    namesake.

    Within a folder they are in the order of their names, numbers by their size: `qwen3-4b` before `qwen3-14b`.
    """
    for folder in (shipped_folder(), user_folder()):
        if folder.is_dir():
            yield from sorted(((path.stem, path) for path in folder.glob("*.yaml")), key=lambda found: _order(found[0]))


def _order(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts names by their letters, and by the size of the numbers in them."""
    return [(letters, int(number or -1)) for letters, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


def is_own(path: Path) -> bool:
    """Return whether a file is in the user's folder of profiles."""
    return path.parent == user_folder()


def shadows(path: Path) -> bool:
    """Return whether a profile of the user's own hides a shipped one of the same name."""
    return is_own(path) and (shipped_folder() / path.name).is_file()


def shipped_folder() -> Path:
    """Return the folder of shipped profiles: in the package when installed, at the repository's root in an editable
    install.
    """
    inside = PACKAGE / "profiles"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "profiles"


def user_folder() -> Path:
    """Return where a user keeps profiles of their own."""
    return platformdirs.user_config_path("hispec") / "profiles"


OBSOLETE = {"verification": "sampled tokens are accepted where they are the target's own"}
"""Keys of `decoding` that older profiles have, and why they mean nothing any more."""


def _drop_obsolete(data: dict[str, Any], path: Path) -> None:
    """Warn of keys that mean nothing any more, and forget them."""
    decoding = data.get("decoding")
    if not isinstance(decoding, dict):
        return
    for key in OBSOLETE.keys() & decoding.keys():
        decoding.pop(key)
        warnings.warn(f"profile {path}: decoding.{key} is ignored: {OBSOLETE[key]}; remove it", stacklevel=3)


def read_profile(path: Path) -> Profile:
    """Read one YAML file. Relative paths in it are meant relative to the file.

    Raises:
        ProfileError: the profile is invalid; the message names the key at fault and the accepted values.
    """
    return parse_profile(read_text(path), path)


def read_text(path: Path) -> str:
    """Return the content of a profile's file; raises the errors of `read_profile`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ProfileError(f"profile {path} is not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise ProfileError(
            f"profile {path} cannot be read: {error.strerror}", "check the file and its permissions"
        ) from error


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                raise _TwiceError(str(key.value), first[key.value], line)
            first[key.value] = line
        return super().construct_mapping(node, deep)


class _TwiceError(Exception):
    """A key that is given twice, and on which lines."""

    def __init__(self, key: str, first: int, second: int) -> None:
        self.key, self.first, self.second = key, first, second


def parse_profile(text: str, path: Path) -> Profile:
    """Read a profile's text as if it were in a file; see `read_profile`."""
    try:
        data = yaml.load(text, _Loader)
    except _TwiceError as twice:
        raise ProfileError(
            f"profile {path}, line {twice.second} gives {twice.key} again, which line {twice.first} has given",
            "keep one of them",
        ) from None
    except RecursionError:
        raise ProfileError(f"profile {path} is nested too deeply", "mend its structure") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ProfileError(f"profile {path}{where} is not YAML: {problem}", "mend that line") from None
    if not isinstance(data, dict):
        raise ProfileError(f"profile {path} holds no keys", "write at least: name, and target: {model: ...}")
    if not all(isinstance(key, str) for key in data):
        raise ProfileError(
            f"profile {path} has a key that is not text",
            "YAML reads no, yes, on, off and numbers otherwise: quote them",
        )
    data = {"name": path.stem, **data}
    _drop_obsolete(data, path)
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        message, hint = explain(error)
        raise ProfileError(f"profile {path}: {message}", hint) from None
    folder = path.parent.absolute()  # a profile derived from this one may be in another folder
    found: dict[str, Any] = {}
    for name in ("target", "draft", "intermediate"):
        level = getattr(profile, name)
        if level is not None and (level.model or "").startswith(("./", "../")):
            found[name] = level.model_copy(update={"model": str(folder / level.model)})
    beside = {name: getattr(profile, name) for name in ("frequencies", "translators")}
    found |= {name: str(folder / Path(file).expanduser()) for name, file in beside.items() if file is not None}
    return profile.model_copy(update=found) if found else profile


def to_yaml(profile: Profile, *, unicode: bool = True) -> str:
    """Return a profile as the text of a file that reads back as an equal one.

    Args:
        profile: the profile; keys that are not set are left out.
        unicode: write letters of all scripts as they are; else as escapes, and so is all that is not ASCII.
    """
    data = {"schema": 1} | profile.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=unicode, width=100))


def resolve_model(model: str) -> str:
    """Return the name that the loading libraries need: a folder of this package for `builtin:NAME`, else the name
    itself.
    """
    if not model.startswith(BUILTIN):
        return str(Path(model).expanduser()) if model.startswith("~") else model
    name = model.removeprefix(BUILTIN)
    folder = PACKAGE / name / "model"
    if not name.isidentifier() or not folder.is_dir():
        raise ProfileError(f"no model named {model} ships with hispec", f"use {BUILTIN}tiny, a folder, or a hub id")
    return str(folder)
