"""A recorded run of the shipped model, whole or held at any of its events."""

import json
from pathlib import Path

import pytest

TRACE = Path(__file__).parent / "data" / "trace.jsonl"
ANSWER = "6 * 24 = 144\n24 + 144 = 168\n#### 168"


def records():
    return [json.loads(line) for line in TRACE.read_text().splitlines()]


def write_trace(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def held_at(tmp_path):
    """A trace whose first events come at once and whose rest takes a quarter of an hour to come."""

    def hold(count, lines=None):
        lines = lines or records()
        timed = [{**line, "t": 0.0 if number < count else 1000.0} for number, line in enumerate(lines)]
        return write_trace(tmp_path / f"held{count}.jsonl", timed)

    return hold
