"""What a benchmark has measured so far, safe on disk: one line a prompt, appended and synced before the next begins."""

import json
import os
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from hispec.bench.compare import differences
from hispec.bench.record import Measurement
from hispec.errors import UnavailableError, UsageError
from hispec.files import hold

SUFFIX = ".rows.jsonl"
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
    """A file whose first line says what is being measured, and each further one the answers to one prompt.

    Args:
        path: of the file; made anew, or continued.
        config: everything that the measurements depend on.
        keys: of the prompts, (row, repeat), that may be in it.
        arms: that answer each of them.
        resume: continue the file at `path`, where it is one of the same configuration.

    Raises:
        UsageError: nothing to resume, or another configuration.
        UnavailableError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        keys: Collection[tuple[str, int]],
        arms: Sequence[str],
        *,
        resume: bool,
    ) -> None:
        self.path = path
        self.measured: list[Measurement] = []
        self.set_aside: Path | None = None
        """Where an earlier journal that was not resumed went."""
        check_journal(path, resume=resume)
        try:
            self._file = path.open("ab")
            self._lock = hold(path, UsageError(f"another run is writing {path}", "wait for it, or choose another -o"))
            if resume:
                self._read(config, set(keys), list(arms))
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

    def append(self, measurements: Sequence[Measurement]) -> None:
        """Keep the answers of all arms to one prompt, on disk before this returns.

        Raises:
            UnavailableError: the disk is full, or gone.
        """
        self.measured += measurements  # first: a Ctrl-C while the disk syncs would leave them out of the report
        try:
            self._write({"answers": [measurement.model_dump() for measurement in measurements]})
        except OSError as error:
            raise UnavailableError(
                f"{self.path} cannot be written: {error.strerror}", "make room, then continue with --resume"
            ) from None

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, config: dict[str, Any], keys: set[tuple[str, int]], arms: list[str]) -> None:
        """Take over an earlier run's lines; the last may have been cut off by its end."""
        whole, _, cut = self.path.read_bytes().rpartition(b"\n")
        try:
            first, *lines = [json.loads(line) for line in whole.split(b"\n")]
            before = first["config"]
            prompts = [[Measurement.model_validate(answer) for answer in line["answers"]] for line in lines]
        except (ValueError, KeyError, TypeError, ValidationError):
            raise UsageError(f"{self.path} is not a benchmark's journal", "run without --resume") from None
        if differing := list(differences("", before, config)):
            shown = [
                f"{key} was {was}, is {now}"
                for key, *values in differing[:MAX_SHOWN]
                for was, now in [_clipped(*values)]
            ]
            more = f"; and {len(differing) - MAX_SHOWN} more" if len(differing) > MAX_SHOWN else ""
            raise UsageError(
                f"{self.path} measured something else: {'; '.join(shown)}{more}",
                "repeat that run with the same options and files, or run without --resume",
            )
        for answers in prompts:
            key = (answers[0].row, answers[0].repeat) if answers else ("", 0)
            whole_set = [(a.arm, a.row, a.repeat) for a in answers] == [(arm, *key) for arm in arms]
            if key not in keys or not whole_set:
                raise UsageError(
                    f"{self.path} was changed: the answers to {key[0]!r} are not this run's", "run without --resume"
                )
            keys.remove(key)
            self.measured += answers
        if cut:
            os.truncate(self.path, len(whole) + 1)


def _clipped(old: Any, new: Any) -> tuple[str, str]:
    """Return two values as JSON, long ones cut to the parts around the first difference."""
    texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    begin = max(0, shared - WIDTH // 3) if max(map(len, texts)) > WIDTH else 0
    was, now = (
        ("..." if begin else "") + text[begin : begin + WIDTH] + ("..." if len(text) > begin + WIDTH else "")
        for text in texts
    )
    return was, now
