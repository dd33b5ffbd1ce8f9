"""The journal of a benchmark: one line has the answers of all arms to one prompt."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hispec import journal
from hispec.bench.record import Measurement
from hispec.errors import UsageError

SUFFIX = ".rows.jsonl"


class Journal(journal.Journal):
    """The measurements of a benchmark so far.

    Args:
        path, config, resume: the arguments of `hispec.journal.Journal`.
        keys: the prompts, as (row, repeat), that the journal may contain.
        arms: the arms that answer each of them.

    Attributes:
        measured: the measurements of an earlier run, if it is resumed, and of this one.

    Raises:
        UsageError, UnavailableError: the file cannot be used, as for `hispec.journal.Journal`.
    """

    owner, did = "a benchmark's", "measured"

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        keys: Collection[tuple[str, int]],
        arms: Sequence[str],
        *,
        resume: bool,
    ) -> None:
        super().__init__(path, config, resume=resume)
        self.measured: list[Measurement] = []
        missing = set(keys)
        for answers in self._answers():
            key = (answers[0].row, answers[0].repeat) if answers else ("", 0)
            whole_set = [(a.arm, a.row, a.repeat) for a in answers] == [(arm, *key) for arm in arms]
            if key not in missing or not whole_set:
                raise UsageError(
                    f"{path} was changed: the answers to {key[0]!r} are not this run's", "run without --resume"
                )
            missing.remove(key)
            self.measured += answers

    def append(self, measurements: Sequence[Measurement]) -> None:
        """Keep the answers of all arms to one prompt, on disk before this returns; errors as `add`."""
        self.measured += measurements  # first: a Ctrl-C while the disk syncs would leave them out of the report
        self.add({"answers": [measurement.model_dump() for measurement in measurements]})

    def _answers(self) -> list[list[Measurement]]:
        """Return the answers that an earlier run left, prompt by prompt."""
        try:
            return [[Measurement.model_validate(one) for one in record["answers"]] for record in self.records]
        except (KeyError, TypeError, ValidationError):
            raise self.foreign() from None
