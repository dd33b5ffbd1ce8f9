"""What scripts read has the shape of the files in `golden`: no key is lost or changes its type.

A file has the keys of one output and the types of their values; answers of the shipped model, which are the same on any
machine, are kept as they are. A new key is written to it by `pytest tests/hispec_cli/test_golden.py --write-golden`; a key
that is gone breaks somebody's script.
"""

import json
from pathlib import Path

import pytest

from hispec.errors import UnavailableError
from hispec_cli import exit_codes
from tests.hispec_cli.conftest import QUESTION

GOLDEN = Path(__file__).parent / "golden"
KEPT = {"text", "token_ids", "finish_reason", "schema", "event", "prompt", "name"}
"""Keys whose values are compared, where they are text, numbers or lists of these."""
LOOSE = {"phase_seconds", "files", "packages", "width", "devices", "revision", "caveats"}
"""Keys whose values have another shape on another machine."""


def shape(value, key=""):
    """The keys of a JSON value and the types of what they hold; objects of a list are joined."""
    if key in LOOSE:
        return "anything"
    if key in KEPT and isinstance(value, (str, list)) and not (value and isinstance(value[0], dict)):
        return value
    if isinstance(value, dict):
        return {name: shape(of, name) for name, of in sorted(value.items())}
    if isinstance(value, list):
        shapes = {json.dumps(shape(one)): shape(one) for one in value}
        return [shapes[text] for text in sorted(shapes)]
    return {bool: "true or false", int: "number", float: "number", str: "text", type(None): "null"}[type(value)]


@pytest.fixture
def compare(request):
    """Compare an output with its golden file, or write that."""

    def against(name, value):
        path, found = GOLDEN / f"{name}.json", shape(value)
        if request.config.getoption("--write-golden"):
            path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        assert found == json.loads(path.read_text()), "a new key: write it with --write-golden"

    return against


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def output(outcome):
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


STATIC = ("--draft-tokens", 2, "--validate-every", 8)  # what the adaptive policy does depends on times


def test_an_answer(hispec, compare):
    (answer,) = output(hispec("generate", QUESTION, *STATIC, "--format", "json"))
    compare("generate", answer)


def test_a_sampled_answer_with_log_probabilities(hispec, compare):
    options = (*STATIC, "--temperature", 0.5, "--seed", 1, "--logprobs", 1, "--max-new-tokens", 3, "--verify")
    (answer,) = output(hispec("generate", QUESTION, *options, "--format", "json"))
    compare("generate-sampled", answer)


def test_events_and_a_trace(hispec, compare, tmp_path):
    trace = tmp_path / "trace.jsonl"
    options = (*STATIC, "--max-new-tokens", 8, "--trace", trace)
    events = output(hispec("generate", QUESTION, *options, "--format", "jsonl"))
    compare("events", events)
    kept = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [event["event"] for event in kept] == [event["event"] for event in events]
    compare("trace", kept)


def test_many_prompts(hispec, compare, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": QUESTION, "id": "a"}) + '\n{"prompt": 7}\n')
    outcome = hispec("generate", "--prompts", "prompts.jsonl", "-o", "out.jsonl", *STATIC, "--max-new-tokens", 4)
    assert outcome.code == 2
    compare("prompts", [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()])


def test_a_chat_and_its_session(hispec, compare, tmp_path):
    turns = output(hispec("chat", "--session", "golden", *STATIC, "--format", "json", stdin=f"{QUESTION}\n"))
    compare("chat", turns)
    (session,) = (tmp_path / "data").rglob("golden.json")
    compare("session", json.loads(session.read_text()))


def test_a_benchmark(hispec, compare):
    options = ("--limit", 2, "--warmup", 0, "--max-new-tokens", 4, "--arms", "hispec,autoregressive", *STATIC)
    (report,) = output(hispec("bench", *options, "--format", "json"))
    compare("bench", report)


def test_a_machine_and_a_profile(hispec, compare):
    compare("doctor", json.loads(hispec("doctor", "--profile", "tiny", "--json").out))
    profiles = json.loads(hispec("profile", "list", "--format", "json").out)
    compare("profiles", [profile for profile in profiles if profile["name"] == "tiny"])


def test_exit_codes():
    named = {name: value for name, value in vars(exit_codes).items() if isinstance(value, int)}
    named["UNAVAILABLE"] = UnavailableError.exit_code
    assert named == json.loads((GOLDEN / "exit-codes.json").read_text())


def test_a_lost_key_and_another_type_are_noticed():
    before = {"text": "a", "figures": [{"seconds_in_all": 1.0, "level": None}]}
    assert shape(before) == shape(json.loads(json.dumps(before)))
    for after in (
        {"text": "b", "figures": before["figures"]},
        {"text": "a", "figures": [{"level": None}]},
        {"text": "a", "figures": [{"seconds_in_all": "1.0", "level": None}]},
    ):
        assert shape(after) != shape(before)
