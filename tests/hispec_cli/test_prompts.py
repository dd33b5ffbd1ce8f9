"""`hispec generate --prompts`: many prompts from a file, errors line by line, and runs that go on after their end."""

import json
import signal
import time

import pytest

from hispec.errors import LosslessnessError
from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint

OTHERS = [f"Anna has {count} apples. Ben has 4 times as many. How many apples does Ben have?" for count in range(2, 8)]


@pytest.fixture
def asked(tmp_path):
    """Write a file of prompts, and return the options that answer it."""

    def write(*lines):
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines))
        return "--prompts", path, "-o", tmp_path / "answers.jsonl", "--max-new-tokens", "24"

    return write


def results(tmp_path):
    return [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]


def test_every_prompt_is_answered_as_it_would_be_alone(hispec, tmp_path, asked):
    outcome = hispec(
        "generate", *asked({"prompt": QUESTION, "id": "a"}, {"question": OTHERS[0]}, b"", {"prompt": "Hi"})
    )
    assert outcome.code == 0 and outcome.out == ""
    assert outcome.err.splitlines()[-1] == f"3 answers of 3 prompts in {tmp_path / 'answers.jsonl'}"
    first, second, third = results(tmp_path)
    alone = json.loads(hispec("generate", QUESTION, "--max-new-tokens", "24", "--format", "json").out)
    assert (first["line"], first["id"], first["token_ids"]) == (1, "a", alone["token_ids"])
    assert set(first) == set(alone) | {"line", "id"}
    assert (second["line"], third["line"], second["prompt"]) == (2, 4, OTHERS[0])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["answers.jsonl", "prompts.jsonl"]


def test_a_line_that_cannot_be_answered_loses_nothing_and_can_be_mended(hispec, tmp_path, asked):
    bad = [b'{"prompt": ', {"id": 7}, [1], {"prompt": 3}, {"prompt": " "}, {"prompt": QUESTION, "system": 1}]
    bad += [b"\xff", {"prompt": "x y " * 3000, "id": "long"}]
    outcome = hispec("generate", *asked({"prompt": QUESTION}, *bad, {"prompt": OTHERS[0]}))
    assert outcome.code == 2
    assert outcome.err.splitlines()[-2] == (
        "error: 8 prompts not answered; the first, line 2: it is not JSON: Expecting value"
    )
    records = results(tmp_path)
    messages = [record["error"]["message"] for record in records if "error" in record]
    for message, words in zip(
        messages,
        ("not JSON", "no prompt", "not a JSON object", "prompt is not text", "prompt is empty", "system is not text"),
        strict=False,
    ):
        assert words in message
    assert "not JSON" in messages[6] and "9,006 tokens" in messages[7]
    assert records[2]["id"] == 7 and "text" in records[0] and "text" in records[-1]

    mended = asked({"prompt": QUESTION}, {"prompt": OTHERS[1]}, {"prompt": OTHERS[0]})
    outcome = hispec("generate", *mended, "--resume")
    assert outcome.code == 0 and not (tmp_path / "answers.jsonl.journal").exists()
    again = results(tmp_path)
    assert again[0] == records[0] and again[2] == {**records[-1], "line": 3}  # timings and all: not computed again
    assert again[1]["prompt"] == OTHERS[1]


def test_answers_that_differ_from_the_target_s_own_are_told_in_the_end(hispec, tmp_path, asked, monkeypatch):
    def differ(_, generation):
        raise LosslessnessError("token 3 differs", "report it")

    monkeypatch.setattr("hispec.api.Engine.check_lossless", differ)
    outcome = hispec("generate", *asked({"prompt": QUESTION}), "--verify")
    assert outcome.code == 4 and "1 answer not the target's own; the first is line 1" in outcome.err
    assert results(tmp_path)[0]["verified"] is False


def test_equal_prompts_are_answered_one_by_one(hispec, tmp_path, asked):
    options = asked(*[{"prompt": QUESTION}] * 3)
    assert hispec("generate", *options, "--temperature", "1").code == 0
    assert len({record["seed"] for record in results(tmp_path)}) == 3


def test_a_grammar_and_a_verification_count_for_all(hispec, tmp_path, asked):
    options = (*asked({"prompt": QUESTION}, {"prompt": "Hi"}), "--regex", "[0-9]{1,3}", "--verify", "--logprobs", "1")
    assert hispec("generate", *options).code == 0
    for record in results(tmp_path):
        assert record["text"].isdigit() and record["verified"] and len(record["logprobs"]) == len(record["token_ids"])
    options = (*asked({"prompt": QUESTION}), "--regex", "[0-9]{30}", "--max-new-tokens", "3")
    assert "cut off before they matched the grammar: 1 answer;" in hispec("generate", *options).err


def test_other_settings_are_not_gone_on_with(hispec, tmp_path, asked):
    assert hispec("generate", *asked({"prompt": QUESTION}, b"{")).code == 2
    outcome = hispec("generate", *asked({"prompt": QUESTION}), "--resume", "--temperature", "0.5")
    assert_message_and_hint(outcome, 2, "computed something else: settings.temperature was 0.0, is 0.5", "--resume")
    outcome = hispec("generate", *asked({"prompt": QUESTION}), "--resume", "--regex", "a")
    assert_message_and_hint(outcome, 2, "computed something else: asking.grammar was null", "--resume")


def test_a_run_that_was_killed_goes_on_and_one_that_is_interrupted_says_how(hispec, process, tmp_path, asked):
    options = asked(*[{"prompt": one} for one in OTHERS * 30])
    journal = tmp_path / "answers.jsonl.journal"
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        before = journal.read_bytes().count(b"\n") if journal.exists() else 0
        child = process("generate", *options, *(["--resume"] if before else []))
        while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < before + 3):
            time.sleep(0.01)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        assert child.returncode == code, err
    assert b"interrupted; continue with --resume" in err and 3 < len(results(tmp_path)) < 180
    kept = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    wanted = (OTHERS * 30)[: len(kept) + 3]
    assert hispec("generate", *asked(*[{"prompt": one} for one in wanted]), "--resume").code == 0
    records = results(tmp_path)
    assert [record["prompt"] for record in records] == wanted
    assert [{"line": at, **one["result"]} for at, one in enumerate(kept, 1)] == records[: len(kept)]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--prompts", "missing.jsonl", "-o", "out.jsonl"), "missing.jsonl cannot be read"),
        (("--prompts", "empty.jsonl", "-o", "out.jsonl"), "empty.jsonl has no prompts"),
        (("--prompts", "empty.jsonl"), "--prompts needs a file for the answers"),
        (("--prompts", "empty.jsonl", "-o", "out.csv"), "out.csv does not say what to write"),
        (("--prompts", "empty.jsonl", "-o", "none/out.jsonl"), "the folder none does not exist"),
        (("--prompts", "empty.jsonl", "-o", "out.jsonl", "--resume"), "there is nothing to resume"),
        (("--prompts", "empty.jsonl", "-o", "out.jsonl", "hello"), "--prompts and a prompt exclude each other"),
        (("--prompts", "empty.jsonl", "-o", "out.jsonl", "--format", "json"), "--prompts and --format json exclude"),
        (("hello", "-o", "out.jsonl"), "--output needs --prompts"),
        (("hello", "--resume"), "--resume needs --prompts"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(hispec, monkeypatch, tmp_path, arguments, cause):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hispec_cli.prompts.load_engine", None)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert_message_and_hint(hispec("generate", *arguments), 2, cause)
