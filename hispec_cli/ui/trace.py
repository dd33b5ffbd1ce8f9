"""The trace file: every event as one JSON line, written as it happens."""

import contextlib
import json
from pathlib import Path
from typing import IO

from hispec.errors import UnavailableError, UsageError
from hispec.events import Event, to_record


class TraceFile:
    """Writes events to a file, or nowhere without a path. A disk that fills up never costs the answer.

    Args:
        path: the file, or None.

    Raises:
        UsageError: on entering, the file cannot be written.
        UnavailableError: on leaving without another error, writing failed.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._begun = False
        """An earlier trace of that name is overwritten only once there is something to write."""
        self._failure: OSError | None = None

    def __enter__(self) -> "TraceFile":
        if self._path is not None:
            try:
                self._file = self._path.open("a", encoding="utf-8")
            except OSError as error:
                raise UsageError(
                    f"the trace {self._path} cannot be written: {error.strerror}",
                    "give --trace a file in a folder of yours",
                ) from None
        return self

    def see(self, event: Event) -> None:
        """Write one event."""
        if self._file is None or self._failure is not None:
            return
        try:
            if not self._begun:
                self._begun = True
                with contextlib.suppress(OSError):  # a pipe has nothing to cut
                    self._file.truncate(0)
            self._file.write(json.dumps(to_record(event), ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            self._failure = error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as failure:
                self._failure = failure
        if self._failure is not None and kind is None:
            raise UnavailableError(
                f"the trace {self._path} is incomplete: {self._failure.strerror}", "make room on its disk"
            )
