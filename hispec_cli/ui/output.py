"""stdout, where answers go and nothing else."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

from hispec.errors import UnavailableError
from hispec_cli.ui.safe_text import visible


def escape_what_cannot_be_encoded() -> None:
    """Make stdout and stderr write characters that their encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class ReaderLeft(Exception):  # noqa: N818 (not an error: `| head -1` has seen enough)
    """The program that read our standard output has closed it."""


def write(text: str) -> None:
    """Write and flush.

    Raises:
        ReaderLeft: the reader of the pipe has closed it.
        UnavailableError: the output cannot be written, for example because the disk is full.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        forget()
        raise ReaderLeft from None
    except OSError as error:
        forget()
        raise UnavailableError(
            f"standard output cannot be written: {error.strerror}", "make room, or write elsewhere"
        ) from None


def write_json(value: Any) -> None:
    """Write one JSON value on one line; errors as `write`. Where stdout is not Unicode, JSON's own escapes keep it ASCII."""
    write(json.dumps(value, ensure_ascii=not is_unicode(sys.stdout.encoding), default=str) + "\n")


def write_records(records: Sequence[Any], *, lines: bool) -> None:
    """Write JSON values one a line, or all of them as one list; errors as `write`."""
    for value in records if lines else [records]:
        write_json(value)


def write_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Write rows of text in columns, without control characters; raises the errors of `write`.

    Args:
        rows: the rows, each with the same number of cells.
        right: columns whose cells end at the same place.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        write(visible("  ".join(cells).rstrip()) + "\n")


def is_unicode(encoding: str | None) -> bool:
    """Return whether an encoding can write every character; a stream that has none, such as one in memory, can."""
    return encoding is None or encoding.lower().startswith("utf")


def forget() -> None:
    """Discard the buffered output, so that writing it cannot fail at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
