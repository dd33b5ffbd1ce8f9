"""`hispec generate` with a JSON schema, a grammar or a regular expression, and with log-probabilities."""

import json
import re
import sys

import jsonschema
import pytest

from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_an_answer_fits_a_schema_and_is_the_target_s_own(hispec, schema):
    outcome = hispec("generate", QUESTION, "--json-schema", schema, "--verify")
    assert outcome.code == 0 and "identical to the target's own" in outcome.err
    jsonschema.validate(json.loads(outcome.out), SCHEMA)


def test_an_answer_matches_a_grammar_or_an_expression(hispec, tmp_path):
    path = tmp_path / "sum.lark"
    path.write_text('start: number " + " number\nnumber: /[0-9]{2}/\n')
    assert re.fullmatch(r"\d\d \+ \d\d\n", hispec("generate", QUESTION, "--grammar", path).out)
    outcome = hispec("generate", QUESTION, "--regex", "(yes|no)[.!]", "--temperature", "1", "--format", "json")
    record = json.loads(outcome.out)
    assert re.fullmatch("(yes|no)[.!]", record["text"]) and record["complete"] is True


def test_an_answer_cut_off_is_told(hispec, schema):
    outcome = hispec("generate", QUESTION, "--json-schema", schema, "--max-new-tokens", "4", "--format", "json")
    assert outcome.code == 0 and json.loads(outcome.out)["complete"] is False
    assert outcome.err == ("the answer was cut off at 4 tokens, before its JSON was complete: raise --max-new-tokens\n")


def test_log_probabilities_are_in_the_object_and_in_events(hispec, tmp_path):
    trace = tmp_path / "trace.jsonl"
    outcome = hispec("generate", QUESTION, "--logprobs", "2", "--format", "jsonl", "--trace", trace)
    events = [json.loads(line) for line in outcome.out.splitlines()]
    told = [one for event in events if event["event"] == "committed" for one in event["logprobs"]]
    finished = events[-1]
    assert told == finished["logprobs"] and [one["token_id"] for one in told] == finished["token_ids"]
    assert set(told[0]) == {"token_id", "text", "logprob", "sampling_logprob", "top", "sampling_top"}
    assert [set(other) for other in told[0]["top"]] == [{"token_id", "text", "logprob"}] * 2
    assert hispec("generate", "--replay", trace, "--speed", "0").out.strip() == finished["text"].strip()
    assert "logprobs" not in hispec("generate", QUESTION, "--format", "jsonl").out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--regex", "("), "the regular expression cannot be used: unclosed group", "docs/structured.md"),
        (("--regex", "a", "--grammar", "x"), "--grammar and --regex exclude each other", "one of them"),
        (("--json-schema", "missing.json"), "missing.json cannot be read", "--json-schema"),
        (("--logprobs", "3"), "--logprobs needs JSON output", "--format json"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(hispec, monkeypatch, arguments, message, hint):
    monkeypatch.setattr("hispec_cli.commands.generate.load_engine", None)
    assert_message_and_hint(hispec("generate", QUESTION, *arguments), 2, message, hint)


def test_files_that_are_no_grammars_are_refused(hispec, tmp_path):
    path = tmp_path / "file"
    for data, option, message in (
        (b"\xff", "--json-schema", "is not UTF-8 text (byte 0)"),
        (b"{", "--json-schema", "the JSON schema is not JSON"),
        (b'{"type": "objekt"}', "--json-schema", "Invalid type: objekt"),
        (b"start: other", "--grammar", 'unknown name: "other"'),
    ):
        path.write_bytes(data)
        assert_message_and_hint(hispec("generate", QUESTION, option, path), 2, message)


def test_without_the_extra_the_error_names_it(hispec, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr("hispec.extras.find_spec", lambda name: None if name == "llguidance" else sys)
    outcome = hispec("generate", QUESTION, "--regex", "a")
    assert_message_and_hint(outcome, 5, "structured output needs llguidance", "pip install 'hispec[grammar]'")
