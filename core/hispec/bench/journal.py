"""What a benchmark has measured so far, safe on disk: one line a prompt, appended and synced before the next begins."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from hispec.bench.record import Measurement
from hispec.errors import UnavailableError, UsageError

SUFFIX = ".rows.jsonl"


class Journal:
    """A file whose first line says what is being measured, and each further one the answers to one prompt.

    Args:
        path: of the file; made anew, or continued.
        config: everything that the measurements depend on.
        resume: continue the file at `path`, where it is one of the same configuration.

    Raises:
        UsageError: nothing to resume, or another configuration.
        UnavailableError: the file cannot be read or written.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.measured: list[Measurement] = []
        self.set_aside: Path | None = None
        """Where an earlier journal that was not resumed went."""
        try:
            if resume:
                self._read(config)
            elif path.exists():
                self.set_aside = path.with_name(path.name + ".old")
                path.replace(self.set_aside)
            self._file = path.open("ab")
            if not resume:
                self._write({"config": config})
        except OSError as error:
            raise UnavailableError(f"{path} cannot be used: {error.strerror}", "choose another place with -o") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, measurements: Sequence[Measurement]) -> None:
        """Keep the answers of all arms to one prompt, on disk before this returns.

        Raises:
            UnavailableError: the disk is full, or gone.
        """
        try:
            self._write({"answers": [measurement.model_dump() for measurement in measurements]})
        except OSError as error:
            raise UnavailableError(
                f"{self.path} cannot be written: {error.strerror}", "make room, then continue with --resume"
            ) from None
        self.measured += measurements

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, config: dict[str, Any]) -> None:
        """Take over an earlier run's lines; the last may have been cut off by its end."""
        if not self.path.exists():
            raise UsageError(f"there is nothing to resume: no {self.path}", "run without --resume, or with the same -o")
        whole, _, cut = self.path.read_bytes().rpartition(b"\n")
        try:
            first, *lines = [json.loads(line) for line in whole.split(b"\n")]
            before = first["config"]
            self.measured = [Measurement.model_validate(answer) for line in lines for answer in line["answers"]]
        except (ValueError, KeyError, TypeError, ValidationError):
            raise UsageError(f"{self.path} is not a benchmark's journal", "run without --resume") from None
        if differing := sorted(key for key in before.keys() | config.keys() if before.get(key) != config.get(key)):
            key = differing[0]
            raise UsageError(
                f"{self.path} measured something else: {', '.join(differing)} "
                f"({key} was {_short(before.get(key))}, is {_short(config.get(key))})",
                "repeat the options of that run, or run without --resume",
            )
        if cut:
            os.truncate(self.path, len(whole) + 1)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
