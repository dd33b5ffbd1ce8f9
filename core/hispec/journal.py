"""The journal of a long run: results on disk, one line each, each written and synced before the next one is
computed.
"""

import json
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from hispec.errors import UnavailableError, UsageError
from hispec.files import hold

MAX_SHOWN = 3
"""Differences that a refusal names."""
WIDTH = 60
"""Characters of a value that it shows."""


def check_journal(path: Path, *, resume: bool) -> None:
    """Refuse a journal that can be neither begun nor continued.

    Raises:
        UsageError: nothing to resume, or no ordinary file.
    """
    if resume and not path.exists():
        raise UsageError(f"there is nothing to resume: no {path}", "run without --resume, or with the same -o")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not an ordinary file", "choose another place with -o")


class Journal:
    """A file whose first line describes the computation, and each further line holds one part of its result.

    Args:
        path: the file, which is created or continued.
        config: all values that the parts depend on.
        resume: continue the file at `path`, where it is one of the same configuration.

    Attributes:
        records: the parts that an earlier run left, in order.
        set_aside: the new path of an earlier journal that was not resumed.

    Raises:
        UsageError: nothing to resume, or another configuration.
        UnavailableError: the file cannot be read or written.
    """

    owner: ClassVar[str] = "a run's"
    """The command that owns the journal, for error messages."""
    did: ClassVar[str] = "computed"
    """The verb for the work of the run, for error messages."""

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.set_aside: Path | None = None
        check_journal(path, resume=resume)
        try:
            self._file = path.open("ab")
            self._lock = hold(path, UsageError(f"another run is writing {path}", "wait for it, or choose another -o"))
            if resume:
                self._read(config)
            else:
                if path.stat().st_size:
                    self._file.close()
                    self.set_aside = path.with_name(path.name + ".old")
                    path.replace(self.set_aside)
                    self._file = path.open("ab")
                self._write({"config": config})
        except OSError as error:
            raise UnavailableError(f"{path} cannot be used: {error.strerror}", "choose another place with -o") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def add(self, record: dict[str, Any]) -> None:
        """Append a part to the file; it is on disk when this returns.

        Raises:
            UnavailableError: the disk is full, or gone.
        """
        try:
            self._write(record)
        except OSError as error:
            raise UnavailableError(
                f"{self.path} cannot be written: {error.strerror}", "make room, then continue with --resume"
            ) from None

    def foreign(self) -> UsageError:
        """Return the error for a file that is no such journal."""
        return UsageError(f"{self.path} is not {self.owner} journal", "run without --resume")

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, config: dict[str, Any]) -> None:
        """Take over an earlier run's lines; the last may have been cut off by its end."""
        whole, _, cut = self.path.read_bytes().rpartition(b"\n")
        try:
            first, *self.records = [json.loads(line) for line in whole.split(b"\n")]
            before = first["config"]
        except (ValueError, KeyError, TypeError):
            raise self.foreign() from None
        if differing := list(differences("", before, config)):
            shown = [
                f"{key} was {was}, is {now}"
                for key, *values in differing[:MAX_SHOWN]
                for was, now in [_clipped(*values)]
            ]
            more = f"; and {len(differing) - MAX_SHOWN} more" if len(differing) > MAX_SHOWN else ""
            raise UsageError(
                f"{self.path} {self.did} something else: {'; '.join(shown)}{more}",
                "repeat that run with the same options and files, or run without --resume",
            )
        if cut:
            os.truncate(self.path, len(whole) + 1)


def differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the innermost values that differ: the dotted keys to each, its old and its new value.

    Args:
        path: keys that lead to both, empty at the top.
        old: a JSON value.
        new: another.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(f"{path}.{key}" if path else key, old.get(key), new.get(key))
    elif old != new:
        yield path, old, new


def _clipped(old: Any, new: Any) -> tuple[str, str]:
    """Return two values as JSON; long ones are cut to the surroundings of the first difference."""
    texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    begin = max(0, shared - WIDTH // 3) if max(map(len, texts)) > WIDTH else 0
    was, now = (
        ("..." if begin else "") + text[begin : begin + WIDTH] + ("..." if len(text) > begin + WIDTH else "")
        for text in texts
    )
    return was, now
