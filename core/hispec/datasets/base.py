"""The interface of datasets: rows, prompt format and scoring. Importing it is fast."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Metric = Literal["exact_match", "pass@1", "rouge_l"]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One prompt.

    Attributes:
        id: unique in its dataset.
        turns: the user's messages; each after the first is asked once the one before it is answered.
        reference: the value that the scorer compares with, as JSON.
        numbered: the id is the record's place, since the record has none of its own.
    """

    id: str
    turns: tuple[str, ...]
    reference: Any = None
    numbered: bool = False


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset repository at one commit, so that every run reads the same bytes.

    Attributes:
        repo: `ORG/NAME`.
        revision: the full commit hash.
        path: the path of the file in the repository: JSONL, JSON or parquet.
    """

    repo: str
    revision: str
    path: str


class Dataset(ABC):
    """The way in which records of one source become rows, and answers to them are scored.

    Attributes:
        name: the name that `--dataset` and `--format-as` accept.
        description: one line.
        metric: the name of what `score` measures; None where nothing is scored.
        raw: the turn is a text to continue and takes no chat template, as few-shot and completion prompts are.
        stop: texts at which the convention ends an answer.
        max_new_tokens: the maximum number of tokens in an answer, by convention.
        hub: the location of the data on a hub; None where no hub has them.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    metric: ClassVar[Metric | None] = None
    raw: ClassVar[bool] = False
    stop: ClassVar[tuple[str, ...]] = ()
    max_new_tokens: ClassVar[int] = 256
    hub: ClassVar[HubFile | None] = None

    @abstractmethod
    def row(self, record: Record, index: int) -> Row | None:
        """Format one record of the source.

        Args:
            record: a record of the source.
            index: its place in the source, from 0.

        Returns:
            The row; None for a record that asks nothing and is left out.

        Raises:
            RecordError: a field is missing or invalid.
        """

    def score(self, row: Row, text: str) -> float | None:
        """Return how good an answer is, 0 to 1; None where that is not measured.

        Args:
            row: the question.
            text: the answer to its last turn.
        """
        return None

    def before_stop(self, text: str) -> str:
        """Return an answer up to the first stop text, for decoders that do not stop there themselves."""
        return text[: min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=len(text))]


class RecordError(ValueError):
    """A record that cannot become a row; the message continues a sentence that names the record: `has no question`.

    Attributes:
        missing: the fields of which it has none; empty where something else is wrong.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


def text_of(record: Record, *names: str) -> str:
    """Return the first of the named fields that the record has: text that a model can be asked.

    Raises:
        RecordError: none of the fields is there, or it is not text, blank, or not encodable as UTF-8.
    """
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        raise RecordError(f"has no {' or '.join(names)}", names)
    return checked_text(record[name], name)


def id_of(record: Record, name: str) -> str | None:
    """Return a record's id as text, None where it has none or null.

    Text and whole numbers are ids; `7.0` is 7, as tables write numbers in a column with gaps.

    Raises:
        RecordError: an id of another type, or text that `checked_text` refuses.
    """
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        return checked_text(value, name)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(f"has an {name} that is neither text nor a whole number")


def checked_text(value: Any, name: str) -> str:
    """Return the value itself where it is text as `text_of` wants it; errors as there."""
    article = "an" if name[0] in "aeiou" else "a"
    if not isinstance(value, str):
        raise RecordError(f"has {article} {name} that is not text")
    if not value.strip():
        raise RecordError(f"has a blank {name}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RecordError(f"has {article} {name} that is not UTF-8 text: it holds half a surrogate pair")
    return value
