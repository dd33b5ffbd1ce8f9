"""Writing files so that a reader sees the old or the new file, never a part of it, and only one process writes at a
time.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from hispec.errors import HispecError, UnavailableError


def write_whole(path: Path, data: bytes, hint: str, *, mode: int = 0o666) -> None:
    """Write a file, all of it or nothing, on disk when this returns; a link is followed.

    Args:
        path: the file, in a folder that exists.
        data: all of it.
        hint: the hint of the error if the file cannot be written.
        mode: permissions of a new file, before the umask.

    Raises:
        UnavailableError: the file cannot be written; the old file is unchanged.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error.strerror}", hint) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def hold(path: Path, held: HispecError) -> FileLock:
    """Keep a file to this process until the lock is released or the process ends, however it ends.

    The lock is on a hidden file in the same folder, `.NAME.lock`, which stays: if it were removed, two processes could
    hold it.

    Args:
        path: the file, in a folder that exists.
        held: the error to raise if another process holds the lock.

    Returns:
        The lock, to be released.

    Raises:
        OSError: the lock cannot be written.
    """
    path = path.resolve()
    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise held from None
    return lock


def remembered(name: str) -> dict[str, Any]:
    """Return the content of a file in the user's cache folder; empty if it is missing or broken."""
    try:
        known = json.loads((platformdirs.user_cache_path("hispec") / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(name: str, known: dict[str, Any]) -> None:
    """Write a file of the user's cache folder; where it cannot be written, that is done without."""
    path = platformdirs.user_cache_path("hispec") / name
    with suppress(OSError, UnavailableError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(known).encode(), "")
