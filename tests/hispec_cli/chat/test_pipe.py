"""`hispec chat` without a terminal: one turn a line, plain answers; and what is refused before anything is said."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hispec.session import Session, SessionStore, Turn, read_session, write_session
from tests.hispec_cli.chat.conftest import APPLES, CARDS, WHO
from tests.hispec_cli.conftest import assert_message_and_hint


@pytest.fixture
def home(tmp_path):
    return tmp_path


@pytest.fixture
def sessions(home):
    folder = home / "data" / "hispec" / "sessions"
    folder.mkdir(parents=True)
    return folder


def records(outcome):
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_a_line_is_a_turn_and_gets_a_plain_answer(hispec, home):
    outcome = hispec("chat", stdin=f"{APPLES}\n\n{CARDS}\r\n/undo\n{WHO}")
    assert outcome.code == 0 and outcome.err.splitlines() == [f"taken back: {CARDS[:57]}..."]
    answers = [record["text"] for record in records(hispec("chat", "--format", "json", stdin=f"{APPLES}\n{CARDS}\n"))]
    assert outcome.out.startswith(f"{answers[0]}\n{answers[1]}\n") and outcome.out.count("\n") > 6
    assert not list(home.rglob("*.json")) and not list(home.rglob("chat-history"))


def test_the_answer_to_the_first_line_is_that_of_generate(hispec):
    assert hispec("chat", stdin=APPLES + "\n").out == hispec("generate", APPLES).out
    assert hispec("chat", "--mode", "autoregressive", stdin=APPLES).out == hispec("generate", APPLES).out


def test_events_of_every_turn_one_a_line(hispec):
    events = records(hispec("chat", "--format", "jsonl", stdin=f"{APPLES}\n{CARDS}\n"))
    prefilled = [event for event in events if event["event"] == "prefilled"]
    assert [event["cached_tokens"] > 40 for event in prefilled] == [False, True]
    assert [event["finish_reason"] for event in events if event["event"] == "finished"] == ["eos", "eos"]


@pytest.mark.parametrize(
    ("stdin", "message", "hint"),
    [
        (b"/undu\n", "there is no command /undu", "did you mean /undo? "),
        (b"ok \xff\n", "line 1 of standard input is not UTF-8 text", "iconv"),
        (b"/set temperature -1\n", "temperature is '-1'", "at least 0"),
        (b"/set seed 9223372036854775808\n", "seed is '9223372036854775808'", "at most 9223372036854775807"),
        (b"/set draft_tokens 2147483648\n", "draft-tokens is '2147483648'", "at most 2147483647"),
        (b"/match regex\n", "/match takes json-schema FILE", "write /match regex"),
        (b"/match regex (\n", "the regular expression cannot be used", "mend it"),
        (b"/match json-schema none.json\n", "none.json cannot be read", "check the path"),
        (b"/load none.json\n", "none.json cannot be read", "check the path"),
    ],
)
def test_a_mistake_ends_it_with_its_exit_code(hispec, stdin, message, hint):
    assert_message_and_hint(hispec("chat", stdin=stdin + b"Hello\n"), 2, message, hint)


def test_a_session_goes_on_with_its_model_settings_and_turns(hispec, sessions):
    begun = (
        "--profile",
        "tiny",
        "--draft-exit",
        "2",
        "--intermediate-exit",
        "4",
        "--temperature",
        "0.8",
        "--seed",
        "3",
    )
    whole = hispec("chat", *begun, "--system", "Be brief.", stdin=f"{APPLES}\n/set top_p 0.9\n{CARDS}\n")
    first = hispec("chat", *begun, "--system", "Be brief.", "--session", "talk", stdin=f"{APPLES}\n/set top_p 0.9\n")
    rest = hispec("chat", "--continue", stdin=f"{CARDS}\n/show\n")
    assert first.out + rest.out == whole.out
    assert "draft exit 2" in rest.err and "temperature 0.8, seed 3, top_p 0.9" in rest.err
    changed = hispec("chat", "--session", "talk", "--temperature", "0", "--system", "No.", stdin="/show\n")
    assert "temperature 0" in changed.err and "system    No." in changed.err
    assert [turn.prompt for turn in read_session(sessions / "talk.json").turns] == [APPLES, CARDS]


def test_answers_match_what_is_asked_for_until_it_is_taken_back(hispec, home, sessions):
    schema = home / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"enum": [3, 15]}}, "required": ["n"], "additionalProperties": false}'
    )
    fitting = ("--json-schema", schema, "--max-new-tokens", "200")
    outcome = hispec("chat", *fitting, "--session", "talk", "--format", "json", stdin=f"{APPLES}\n{CARDS}\n")
    for record in records(outcome):
        assert json.loads(record["text"])["n"] in (3, 15) and record["complete"] is True
    typed = f"/match\n{APPLES}\n/match regex yes|no\n{APPLES}\n/show\n/match off\n{WHO}\n"
    again = hispec("chat", "--session", "talk", stdin=typed)
    first, second, *rest = again.out.splitlines()
    assert json.loads(first)["n"] in (3, 15) and second in ("yes", "no") and rest
    assert "answers match the JSON schema" in again.err and "match     yes|no" in again.err
    assert read_session(sessions / "talk.json").grammar is None
    cut = hispec("chat", *fitting[:2], "--max-new-tokens", "2", stdin=APPLES)
    assert cut.err == "the answer was cut off at 2 tokens, before its JSON was complete: raise --max-new-tokens\n"


def test_levels_of_copies_are_shown_with_their_weights(hispec, home):
    profile = home / "copies.yaml"
    profile.write_text(
        "target: {model: builtin:tiny}\ndraft: {exit_layer: 2, weights: int4}\nintermediate: {weights: int8}\n"
    )
    shown = hispec("chat", "--profile", str(profile), stdin="/show\n").err
    levels = "draft exit 2 int4 of builtin:tiny, intermediate exit 16 int8 of builtin:tiny, target"
    assert f"levels    {levels}" in shown


def test_a_session_goes_on_with_the_profile_that_the_environment_named(hispec, home, sessions, monkeypatch):
    profile = home / "alone.yaml"
    profile.write_text("target: {model: builtin:tiny}\n")
    monkeypatch.setenv("HISPEC_PROFILE", str(profile))
    assert hispec("chat", "--session", "talk", stdin=f"{WHO}\n").code == 0
    monkeypatch.delenv("HISPEC_PROFILE")
    assert "profile   alone" in hispec("chat", "--continue", stdin="/show\n").err


def test_the_mode_of_a_session_brings_its_lengths(hispec):
    for arguments in (("--session", "talk", "--mode", "single-layer"), ("--continue",)):
        events = records(hispec("chat", *arguments, "--format", "jsonl", stdin=f"{APPLES}\n"))
        assert max(len(event["token_ids"]) for event in events if event["event"] == "drafted") == 12


def test_what_is_damaged_missing_or_in_use_is_refused(hispec, sessions):
    assert_message_and_hint(hispec("chat", "--continue", stdin="a\n"), 2, "no earlier session", "hispec chat")
    named = hispec("chat", "--continue", "--session", "talk", stdin="a\n")
    assert_message_and_hint(named, 2, "there is no session talk", "leave out --continue")
    (sessions / "talk.json").write_text('{"schema": "hispec.session/1", "turns": [')
    assert_message_and_hint(hispec("chat", "--session", "talk", stdin="a\n"), 2, "not a complete saved", "move it away")
    assert_message_and_hint(hispec("chat", "--session", "../x", stdin="a\n"), 2, "cannot name a session", "letters")
    store = SessionStore("mine", sessions)
    store.save(Session.new(turns=(Turn("a", "b", (1,), "eos"),)))
    assert_message_and_hint(
        hispec("chat", "--continue", stdin="a\n"), 2, "mine is open in another process", "--session"
    )
    store.close()
    assert_message_and_hint(
        hispec("chat", "--markdown", "--format", "json", stdin="a\n"), 2, "exclude each other", "leave out"
    )


def test_sessions_are_listed_renamed_and_deleted(hispec, sessions):
    empty = hispec("chat", "--list-sessions")
    assert (empty.code, empty.out) == (0, "") and "start one: hispec chat" in empty.err
    for at, name in enumerate(("cooking", "travel", "sums")):
        turns = tuple(Turn(f"{name} \x1b[31m?\n" * 9, "a", (1,), "eos") for _ in range(at + 1))
        write_session(sessions / f"{name}.json", Session.new(model={"profile": "tiny"}, turns=turns))
        os.utime(sessions / f"{name}.json", (at, at))
    (sessions / "torn.json").write_text("{")
    lines = hispec("chat", "--list-sessions").out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "torn", "sums", "travel", "cooking"]
    assert "(damaged)" in lines[1] and " tiny " in lines[2] and "sums \\x1b[31m? sums" in lines[2]
    (listed,) = records(hispec("chat", "--list-sessions", "--format", "json"))
    assert [one["turns"] for one in listed] == [None, 3, 2, 1] and listed[1]["path"] == str(sessions / "sums.json")
    assert hispec("chat", "--rename-session", "cooking", "kitchen").code == 0
    assert len(read_session(sessions / "kitchen.json").turns) == 1 and not (sessions / "cooking.json").exists()
    refused = [
        (("--rename-session", "kitchen", "sums"), "there is a session sums already", "choose another name"),
        (("--rename-session", "kitchen", "a/b"), "cannot name a session", "letters"),
        (("--rename-session", "kichen", "a"), "there is no session kichen", "did you mean kitchen? "),
        (("--delete-session", "../sums"), "there is no session ../sums", "--list-sessions"),
        (("--list-sessions", "--delete-session", "sums"), "exclude each other", "one of them"),
    ]
    for arguments, message, hint in refused:
        assert_message_and_hint(hispec("chat", *arguments), 2, message, hint)
    with closing(SessionStore("travel", sessions)):
        for arguments in (("--rename-session", "travel", "x"), ("--delete-session", "travel")):
            assert_message_and_hint(
                hispec("chat", *arguments), 2, "travel is open in another process", "leave it there"
            )
    assert hispec("chat", "--delete-session", "travel", "--delete-session", "torn").code == 0
    assert sorted(path.name for path in sessions.glob("[a-z]*")) == ["kitchen.json", "sums.json"]


def test_a_session_that_begins_says_so(hispec, sessions):
    write_session(sessions / "cooking.json", Session.new(turns=(Turn("a", "b", (1,), "eos"),)))
    said = hispec("chat", "--session", "coking", stdin="/quit\n").err
    assert said == "coking is a new session; did you mean cooking? hispec chat --session cooking\n"
    assert hispec("chat", "--session", "else", stdin="/quit\n").err == "else is a new session\n"
    assert hispec("chat", "--session", "cooking", stdin="/quit\n").err == ""


def test_a_folder_that_cannot_be_written(hispec, home):
    (home / "data").write_text("a file")
    assert_message_and_hint(hispec("chat", "--session", "talk", stdin="a\n"), 5, "cannot be used", "--no-history")


def test_a_full_disk_is_told_after_the_answer(hispec, sessions, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    outcome = hispec("chat", "--session", "talk", stdin=f"{APPLES}\n{CARDS}\n")
    assert outcome.code == 5 and "No space left" in outcome.err and outcome.out == hispec("generate", APPLES).out


def test_a_turn_that_cannot_be_saved_is_kept_elsewhere(hispec, sessions, monkeypatch, tmp_path):
    fsync = os.fsync

    def full(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(sessions):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = hispec("chat", "--session", "talk", stdin=f"{APPLES}\n{CARDS}\n")
    (kept,) = tmp_path.glob("hispec-*.json")
    assert outcome.code == 5 and "the session talk was not saved" in outcome.err and f"/load {kept}" in outcome.err
    assert [turn.prompt for turn in read_session(kept).turns] == [APPLES]


def test_a_base_model_needs_a_template(hispec, home, shipped_model):
    model = shutil.copytree(shipped_model, home / "base")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    refused = hispec("chat", "--model", model, stdin=f"{APPLES}\n")
    assert_message_and_hint(refused, 2, "has no chat template: it is a base model", "--chat-template")
    profile = home / "base.yaml"
    profile.write_text(f"target: {{model: {model}}}\ndraft: {{exit_layer: 1}}\nchat_template: {json.dumps(template)}\n")
    assert hispec("chat", "--profile", profile, stdin=f"{APPLES}\n").out == hispec("generate", APPLES).out


def test_a_stop_text_ends_every_answer(hispec):
    for given in (("--stop", "#"), ()):  # the session remembers it
        outcome = hispec("chat", "--session", "talk", *given, stdin=f"{APPLES}\n")
        assert outcome.code == 0 and outcome.out.count("=") and "#" not in outcome.out


def test_help_imports_neither_torch_nor_prompt_toolkit():
    code = """
import sys
from hispec_cli.app import run
code = run(["chat", "--help"])
sys.exit(code or (9 if {"torch", "transformers", "prompt_toolkit"} & {*sys.modules} else 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--continue" in done.stdout


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("# Sum\n**3** + *4*\n= 7", ["Sum", "3 + 4", "= 7"]),
        ("a <b>c</b> [red]d[/red]", ["a <b>c</b> [red]d[/red]"]),
        ("&#x202e;x \x1b[31m\u202e &#27;[1m", ["\\u202ex \\x1b[31m\\u202e \ufffd[1m"]),
        ("[site](https://example.org/x)", ["site (https://example.org/x)"]),
        ("```\nprint('[b]')\n```", ["print('[b]')"]),
    ],
)
def test_markdown_is_rendered_without_losing_or_obeying_anything(capsys, monkeypatch, written, shown):
    from hispec_cli.ui.markdown import write_markdown

    monkeypatch.setenv("COLUMNS", "80")
    write_markdown(written)
    assert [line.strip(" ┃┏┓┗┛━") for line in capsys.readouterr().out.splitlines() if line.strip(" ┃┏┓┗┛━")] == shown


def test_a_session_goes_on_with_its_mode_and_exits_and_what_is_asked_for_now(hispec, sessions):
    begun = ("chat", "--session", "talk", "--mode", "single-layer", "--draft-exit", 5, "--format", "json")
    first = records(hispec(*begun, stdin=CARDS + "\n"))[0]
    assert [level["exit_layer"] for level in first["stats"]["levels"]] == [5]
    again = records(hispec("chat", "--session", "talk", "--validate-every", 1, "--format", "json", stdin=CARDS + "\n"))[
        0
    ]
    assert [level["exit_layer"] for level in again["stats"]["levels"]] == [5]
    assert again["stats"]["tokens_per_target_pass"] <= 2
    assert read_session(sessions / "talk.json").options == {"mode": "single-layer", "validate_every": 1}


def test_a_setting_that_changes_nothing_says_so(hispec):
    outcome = hispec("chat", stdin="/set top_k 5\n/set draft_tokens 13\n/set validate_every 13\n")
    notes = [line for line in outcome.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "top_k changes nothing" in notes[0] and "13 is above validate_every 12" in notes[1]
