"""Records out of files: JSONL with every mistake named by its line, JSON arrays, parquet, and what ships here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hispec.datasets.base import Record
from hispec.errors import UsageError
from hispec.extras import require

SUFFIXES = (".jsonl", ".json", ".parquet")


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Return the records of a file, in its order.

    Args:
        path: a file whose name ends in `.json` (one array) or `.parquet`; any other is read as JSONL.

    Yields:
        Where the record stands (`line 3`, `record 3`), and the record.

    Raises:
        UsageError: a file that is missing, unreadable, not UTF-8, not JSON or parquet, or holds other than objects.
    """
    try:
        if path.suffix == ".parquet":
            records = _parquet_records(path)
        elif path.suffix == ".json":
            records = _array_records(path)
        else:
            records = _line_records(path)
        for where, record in records:
            if not isinstance(record, dict):
                raise UsageError(
                    f"{path}, {where} is not a JSON object", 'write objects such as {"prompt": "..."}, one a line'
                )
            yield where, record
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}", "check the path and its permissions"
        ) from None


def shipped_path(name: str) -> Path:
    """Return a data file of this package."""
    return Path(__file__).parent / "data" / f"{name}.jsonl"


def shipped_records(name: str) -> list[Record]:
    """Return the records of a data file of this package."""
    return [record for _, record in read_records(shipped_path(name))]


def _line_records(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"line {number}"
            text = _decode(line, path, where)
            if text.strip():
                yield where, _parse(text, path, where)


def _array_records(path: Path) -> Iterator[tuple[str, Any]]:
    records = _parse(_decode(path.read_bytes(), path, ""), path, "")
    if not isinstance(records, list):
        raise UsageError(
            f"{path} is not a JSON array", "wrap its objects in [ ]; where it has one object a line, name it .jsonl"
        )
    for number, record in enumerate(records, start=1):
        yield f"record {number}", record


def _parquet_records(path: Path) -> Iterator[tuple[str, Any]]:
    require("bench", f"parquet ({path.name})", "datasets")
    import datasets
    import pyarrow

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would warn of a damaged file before the error
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        rows = datasets.Dataset.from_parquet(str(path), streaming=True)  # streamed: no second copy in its cache
        for number, record in enumerate(rows, start=1):
            yield f"record {number}", record
    except pyarrow.ArrowException as error:
        line = str(error).partition("\n")[0]
        raise UsageError(f"{path} is not parquet: {line}", "check the file, or download it again") from None


def _decode(data: bytes, path: Path, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{_place(path, where)} is not UTF-8 text (byte {error.start})", "convert it, for example with iconv"
        ) from None


def _parse(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if where else f"line {error.lineno} column {error.colno}"
        raise UsageError(f"{_place(path, where)} is not JSON: {error.msg} ({at})", "mend it there") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise UsageError(f"{_place(path, where)} is not JSON that can be read: {error}", "mend it there") from None


def _place(path: Path, where: str) -> str:
    return f"{path}, {where}" if where else str(path)
