"""stdout, where answers go and nothing else."""

import contextlib
import json
import os
import sys
from typing import Any


class ReaderLeft(Exception):  # noqa: N818 (not an error: `| head -1` has seen enough)
    """Whoever read our standard output has closed it."""


def write(text: str) -> None:
    """Write and flush.

    Raises:
        ReaderLeft: when nobody reads any more.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        forget()
        raise ReaderLeft from None


def write_json(value: Any) -> None:
    """One JSON value on one line; errors as `write`."""
    write(json.dumps(value, ensure_ascii=False) + "\n")


def forget() -> None:
    """Send what is still buffered nowhere, so that it cannot complain at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
