"""The prompts of benchmarks: `load("gsm8k")`, or a file of one's own.

One module a dataset, each with its prompt format, its scorer and a sample record. A new module with a subclass of
`Dataset` in this folder is a new dataset; nothing else names it. Nothing heavy is imported before something is loaded.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from hispec.counts import counted
from hispec.datasets import files, hub
from hispec.datasets.base import Dataset, Record, RecordError, Row
from hispec.datasets.humaneval import HumanEval
from hispec.datasets.prompts import Prompts
from hispec.datasets.sample import Sample
from hispec.discovery import modules_in
from hispec.errors import UsageError
from hispec.extras import require

__all__ = ["DATASETS", "FORMATS", "Dataset", "Loaded", "Row", "hash_rows", "load"]

FORMATS: dict[str, type[Dataset]] = {
    kind.name: kind
    for module in modules_in(__name__)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, Dataset)
    and kind.__module__ == module.__name__
    and kind is not Dataset
}
"""The datasets of all modules in this folder, by the names that `--format-as` accepts."""

DATASETS = {name: kind for name, kind in FORMATS.items() if kind is not Prompts}
"""The datasets by the names that `--dataset` accepts; it takes any other value for a file."""


@dataclass(frozen=True)
class Loaded:
    """A dataset with its rows.

    Attributes:
        dataset: formats and scores.
        rows: the rows, in the source's order.
        sha256: over ids, turns and references: equal for equal prompts, wherever they came from.
        source: `ORG/NAME@REVISION` on the hub, a file's name, or `shipped`.
    """

    dataset: Dataset
    rows: list[Row]
    sha256: str
    source: str


def load(
    name_or_path: str,
    *,
    format_as: str | None = None,
    limit: int | None = None,
    offline: bool = False,
    allow_code_execution: bool = False,
) -> Loaded:
    """Load a dataset by name, or a file.

    Args:
        name_or_path: a key of `DATASETS`, or the path of a JSONL, JSON or parquet file.
        format_as: a key of `FORMATS`: how a file is read; by default as `prompts`.
        limit: take the first rows only.
        offline: never touch the network; so does HF_HUB_OFFLINE=1.
        allow_code_execution: let `humaneval` run the model's code, see `hispec.datasets.execution`.

    Raises:
        UsageError: an unknown name, or a file that is missing, malformed or empty.
        UnavailableError: neither the hub nor its cache has the dataset; packages of the extra `bench` are missing.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {counted(limit, 'row')}", "give a limit of at least 1")
    path = _path_of(name_or_path)
    if path is None and format_as is not None:
        raise UsageError(
            f"{name_or_path} is a dataset, not a file", "leave out --format-as: it says how a file is read"
        )
    name = name_or_path if path is None else format_as or Prompts.name
    if name not in FORMATS:
        raise _unknown(name, "format", FORMATS)
    kind = FORMATS[name]
    if kind.metric == "rouge_l":
        require("bench", f"the score of {name}", "rouge_score")
    if path is None and kind.hub is not None and kind.hub.path.endswith(".parquet"):
        require("bench", f"the dataset {name}", "datasets")
    dataset = HumanEval(allow_code_execution=allow_code_execution) if kind is HumanEval else kind()
    if path is None:
        path, source = _home_of(dataset, offline=offline)
    else:
        source = os.fsencode(path.name).decode("utf-8", "backslashreplace")  # reports are UTF-8
    rows = _rows(dataset, files.read_records(path), str(path), limit)
    if not rows:
        raise UsageError(f"{path} holds no prompt", 'write objects such as {"prompt": "..."}, one a line')
    return Loaded(dataset, rows, hash_rows(rows), source)


def _path_of(name_or_path: str) -> Path | None:
    """Return the path of a file, or None for the name of a dataset.

    Raises:
        UsageError: neither a dataset nor a file.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path in DATASETS:
        return None
    if path.is_file() or path.is_fifo():
        return path
    if path.is_dir():
        raise UsageError(f"{name_or_path} is a folder", "pass a file in it")
    if "/" in name_or_path or path.suffix in files.SUFFIXES:
        raise UsageError(f"there is no file {name_or_path}", "check the path")
    raise _unknown(name_or_path, "dataset", DATASETS)


def _unknown(name: str, what: str, known: Iterable[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    file = ", or the path of a JSONL file" if what == "dataset" else ""
    return UsageError(f"there is no {what} named {name!r}", f"{hint}known: {', '.join(known)}{file}")


def _home_of(dataset: Dataset, *, offline: bool) -> tuple[Path, str]:
    """Return the file of a dataset on this machine, and the name of its source."""
    if isinstance(dataset, Sample):
        return files.shipped_path(dataset.name), "shipped"
    if dataset.hub is None:
        raise UsageError(
            f"no hub has {dataset.name}: {dataset.description}",
            f"download it and pass it: --dataset question.jsonl --format-as {dataset.name}",
        )
    path = hub.fetch(dataset.hub, dataset.name, offline=offline)
    return path, f"{dataset.hub.repo}@{dataset.hub.revision}"


def _rows(dataset: Dataset, records: Iterable[tuple[str, Record]], source: str, limit: int | None) -> list[Row]:
    """Return the first `limit` rows of the records, their ids unique: a number that a record has for its id is left to it."""
    rows: list[Row] = []
    places: dict[str, str] = {}
    for index, (where, record) in enumerate(records):
        try:
            row = dataset.row(record, index)
        except RecordError as error:
            hint = "mend that record"
            if isinstance(dataset, Prompts) and "prompt" in error.missing:
                hint = "give every record a prompt or a question, or say what the file is: --format-as NAME"
            raise UsageError(f"{source}, {where} {error}", hint) from None
        if row is None:
            continue
        if not row.numbered:
            if row.id in places:
                raise UsageError(
                    f"{source}, {where} has the id {_short(row.id)} of {places[row.id]}",
                    "give every record its own, or none: it is numbered then",
                )
            places[row.id] = where
        rows.append(row)
        if len(rows) == limit:
            break
    return [replace(row, id=_free(row.id, places)) if row.numbered else row for row in rows]


def _free(number: str, taken: Collection[str]) -> str:
    """Return a number as an id, with a suffix if a record has the number for its own id."""
    return next(id_ for id_ in chain([number], (f"{number}.{more}" for more in count(1))) if id_ not in taken)


def _short(id_: str) -> str:
    return repr(id_) if len(id_) <= 60 else repr(id_[:57])[:-1] + "...'"


def hash_rows(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of ids, turns and references."""
    content = [[row.id, row.turns, row.reference] for row in rows]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
