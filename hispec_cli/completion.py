"""Shell completion. Everything here is fast and imports no torch."""

import os
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

from hispec.bench.names import ARMS

SCRIPTS = ("--show-completion", "--install-completion")
"""Options that write a shell's script."""


class Shell(StrEnum):
    """Shells that completion is written for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"
    powershell = "powershell"
    pwsh = "pwsh"


def with_shell(arguments: list[str]) -> list[str]:
    """Name the user's shell after an option of `SCRIPTS` that stands alone."""
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        return arguments
    name = Path(os.environ.get("SHELL", "")).name
    return [*arguments, name] if name in set(Shell) else arguments


def profiles(incomplete: str) -> list[str]:
    """Return the names of profiles that begin so."""
    from hispec.profile import list_profiles

    return _beginning(incomplete, dict(list_profiles()))


def sessions(incomplete: str) -> list[str]:
    """Return the names of saved sessions that begin so."""
    from hispec.session import sessions_folder

    return _beginning(incomplete, sorted(path.stem for path in sessions_folder().glob("*.json")))


def datasets(incomplete: str) -> list[str]:
    """Return the names of datasets that begin so."""
    from hispec.datasets import DATASETS

    return _beginning(incomplete, DATASETS)


def formats(incomplete: str) -> list[str]:
    """Return the names that `--format-as` takes and that begin so."""
    from hispec.datasets import FORMATS

    return _beginning(incomplete, FORMATS)


def arms(incomplete: str) -> list[str]:
    """Return completions of a list of arms: the list with its last item replaced by each arm that it lacks."""
    *named, last = incomplete.split(",")
    before = "".join(f"{name}," for name in named)
    return [before + arm for arm in _beginning(last, ARMS) if arm not in named]


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that completes one of some names."""
    return lambda incomplete: _beginning(incomplete, names)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
