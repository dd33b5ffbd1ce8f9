"""Files that a reader sees as they were or as they are, never a part of."""

import os
from pathlib import Path

from hispec.errors import UnavailableError


def write_whole(path: Path, data: bytes, cure: str, *, mode: int = 0o666) -> None:
    """Write a file, all of it or nothing, on disk when this returns; a link is followed.

    Args:
        path: of the file; its folder exists.
        data: all of it.
        cure: what to do where it cannot be written.
        mode: permissions of a new file, before the umask.

    Raises:
        UnavailableError: it cannot be written; what was there stays.
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
        raise UnavailableError(f"{path} cannot be written: {error.strerror}", cure) from None
    finally:
        partial.unlink(missing_ok=True)
