"""The intermediate results of a calibration on disk."""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from hispec.calibration.costs import Costs, SpanCost
from hispec.calibration.recording import LevelSpec, Prediction, RecordedText, RecordedTexts
from hispec.calibration.search import Configuration
from hispec.calibration.timing import TimedAnswer
from hispec.curve import Curve
from hispec.errors import UnavailableError
from hispec.files import write_whole
from hispec.policies.confidence import FEATURES


class CalibrationStore:
    """A folder from which an interrupted calibration can be resumed.

    Args:
        folder: made where it is missing.
        resume: whether to keep its content; otherwise it is emptied.

    Raises:
        UnavailableError: the folder cannot be used.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                for path in (self._costs, self._length, self._recorded, *folder.glob("*.answers.jsonl")):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise UnavailableError(f"{folder} cannot be used: {error.strerror}", "free it, or the disk") from None

    @property
    def _costs(self) -> Path:
        return self.folder / "costs.json"

    @property
    def _length(self) -> Path:
        return self.folder / "length.json"

    @property
    def _recorded(self) -> Path:
        return self.folder / "traces.json.gz"

    def costs(self) -> Costs | None:
        """Return the costs that are stored."""
        if (record := _read(self._costs)) is None:
            return None
        spans = {
            name: SpanCost(*(tuple(_curve(curve) for curve in span[part]) for part in ("call", "layer")))
            for name, span in record["spans"].items()
        }
        heads = {(model, head_size): _curve(curve) for model, head_size, curve in record["heads"]}
        return Costs(spans, heads, record["steps"], record["confidence"], record["guess"])

    def keep_costs(self, costs: Costs) -> None:
        """Store costs."""
        record = {
            "spans": {name: asdict(span) for name, span in costs.spans.items()},
            "heads": [[model, head_size, asdict(curve)] for (model, head_size), curve in costs.heads.items()],
            "steps": dict(costs.steps),
            "confidence": costs.confidence,
            "guess": costs.ngram_lookup,
        }
        _write(self._costs, json.dumps(record).encode())

    def length(self) -> int | None:
        """Return the stored length of an answer in tokens; answers of different lengths are not comparable."""
        found = _read(self._length)
        return found if isinstance(found, int) else None

    def keep_length(self, tokens: int) -> None:
        """Store the length of an answer in tokens."""
        _write(self._length, json.dumps(tokens).encode())

    def recorded(self) -> RecordedTexts | None:
        """Return the recorded texts that are stored."""
        if (record := _read(self._recorded)) is None or record["features"] != list(FEATURES):
            return None
        specs = [LevelSpec(*spec) for spec in record["readers"]]

        def trace(kept: dict[str, Any]) -> RecordedText:
            predictions = {
                spec: Prediction(best, [tuple(sure) for sure in confidence])
                for spec, (best, confidence) in zip(specs, kept["readings"], strict=True)
            }
            return RecordedText(kept["prompt"], kept["tokens"], predictions)

        return RecordedTexts(
            [trace(text) for text in record["texts"]],
            {spec: [trace(t) for t in kept] for spec, kept in zip(specs, record["detours"], strict=True)},
        )

    def keep_recorded(self, recorded: RecordedTexts) -> None:
        """Store recorded texts."""
        specs = list(recorded.branches)

        def kept(trace: RecordedText) -> dict[str, Any]:
            predictions = [[trace.predictions[spec].argmax, trace.predictions[spec].confidence] for spec in specs]
            return {"prompt": trace.prompt, "tokens": trace.tokens, "readings": predictions}

        record = {
            "features": list(FEATURES),
            "readers": [list(astuple(spec)) for spec in specs],
            "texts": [kept(text) for text in recorded.texts],
            "detours": [[kept(trace) for trace in recorded.branches[spec]] for spec in specs],
        }
        _write(self._recorded, gzip.compress(json.dumps(record).encode(), 1))

    def answers(self, phase: str, configurations: Sequence[Configuration]) -> list[TimedAnswer]:
        """Return the timed answers of these configurations; a last line that was cut off does not count."""
        places = {repr(configuration): at for at, configuration in enumerate(configurations)}
        return [
            TimedAnswer(places[record.pop("of")], **record)
            for record in self._lines(phase)
            if record.get("of") in places
        ]

    def keep_answer(self, phase: str, configuration: Configuration, answer: TimedAnswer) -> None:
        """Store a timed answer; it is on disk when this returns."""
        record = asdict(answer) | {"of": repr(configuration)}
        del record["configuration"]
        with self._answers(phase).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _answers(self, phase: str) -> Path:
        return self.folder / f"{phase}.answers.jsonl"

    def _lines(self, phase: str) -> Iterator[dict[str, Any]]:
        path = self._answers(phase)
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):  # cut off in mid-line
            text = text[: text.rfind("\n") + 1]
            _write(path, text.encode())
        for line in text.splitlines():
            yield json.loads(line)


def _curve(record: dict[str, Any]) -> Curve:
    return Curve(tuple(record["at"]), tuple(record["seconds"]))


def _read(path: Path) -> Any:
    """Return a record, None where there is none or only half of one."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (FileNotFoundError, ValueError, EOFError, OSError):
        return None


def _write(path: Path, data: bytes) -> None:
    write_whole(path, data, "make room in the user's state folder")
