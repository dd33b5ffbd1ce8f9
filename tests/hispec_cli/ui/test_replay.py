"""`hispec generate --replay`: traces played without a model, and what is said about files that are none."""

import json
import subprocess
import sys

import pytest

from hispec_cli.ui.replay import read_trace
from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint
from tests.hispec_cli.ui.conftest import ANSWER, TRACE, records, write_trace


def replay(hispec, trace, *options):
    return hispec("generate", "--replay", trace, "--speed", 0, *options)


def test_every_format_says_what_the_run_said(hispec):
    assert replay(hispec, TRACE).out == ANSWER + "\n"
    assert replay(hispec, TRACE, "--format", "jsonl").out == TRACE.read_text()
    record = {key: value for key, value in records()[-1].items() if key not in ("event", "t")}
    assert json.loads(replay(hispec, TRACE, "--format", "json").out) == record


def test_what_is_traced_now_can_be_replayed(hispec, tmp_path):
    for mode in ("hispec", "autoregressive"):
        live = hispec("generate", QUESTION, "--trace", tmp_path / "t.jsonl", "--stop", "####", "--mode", mode)
        assert replay(hispec, tmp_path / "t.jsonl").out == live.out
    live = hispec(
        "generate", QUESTION, "--trace", tmp_path / "t.jsonl", "--temperature", 1.5, "--seed", 3, "--max-new-tokens", 40
    )
    assert replay(hispec, tmp_path / "t.jsonl").out == live.out


def test_no_model_and_no_torch_are_needed():
    code = f"""
import sys
from hispec_cli.app import run
code = run(["generate", "--replay", {str(TRACE)!r}, "--speed", "0"])
sys.exit(code or 9 * ("torch" in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_events_come_as_recorded_or_faster_or_at_once():
    recording = read_trace(TRACE)
    for speed, total in ((1, 1.0), (4, 0.25), (0, 0.0)):
        waits = []
        list(recording.play(speed, waits.append))  # which does not wait: each wait is then the time since the start
        assert max(waits, default=0) == pytest.approx(recording.events[-1].t * total, abs=0.05)
        assert waits == [] or len(waits) > len(recording.events) / 2


def edited(change):
    lines = records()
    change(lines)
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: it is not JSON"),
        ("hello\n", "line 1: it is not JSON"),
        ("[1, 2]\n", "line 1: it is not an event"),
        ('{"event": ["drafted"]}\n', "line 1: it is not an event"),
        ('{"event": "exploded", "t": 0}\n', "line 1: it is not an event"),
        ("[" * 100_000, "line 1: it is"),
        (TRACE.read_text()[:-1500], "is not JSON"),
        ("".join(TRACE.read_text().splitlines(True)[:9]), "is cut off"),
        (edited(lambda lines: lines[2].update(t="soon")), "line 3: t: "),
        (edited(lambda lines: lines[2].update(t=1e999)), "line 3: t is inf"),
        (edited(lambda lines: lines[2].update(t=0.0)), "line 3: t is 0.0 after"),
        (edited(lambda lines: lines[2].update(token_ids=7)), "line 3: token_ids: "),
        (edited(lambda lines: lines[2].pop("texts")), "line 3: its draft has no text"),
        (edited(lambda lines: lines[2].update(level="\x1b[2Jx")), "line 3: the level '\\x1b[2Jx' is not one of draft"),
        (edited(lambda lines: lines[4].update(proposed=10**9)), "line 5: 1000000000 tokens are verified"),
        (edited(lambda lines: lines.pop(2)), "line 4: 2 tokens are verified"),
        (edited(lambda lines: lines[1].update(text="5")), "do not add up to its text"),
        (edited(lambda lines: lines[-1].pop("stats")), "line 68: stats: "),
        (edited(lambda lines: lines[-1].update(stats=[1])), "line 68: stats: "),
        (edited(lambda lines: lines[-1]["stats"].update(levels=[{}])), "line 68: stats.levels.0.name: "),
        (edited(lambda lines: lines.append(lines[-1])), "line 69: it continues after its end"),
    ],
)
def test_what_is_no_trace_is_told_in_one_line(hispec, tmp_path, content, message):
    (tmp_path / "trace.jsonl").write_text(content)
    assert_message_and_hint(replay(hispec, tmp_path / "trace.jsonl"), 2, message, "hispec generate ... --trace")


def test_files_that_cannot_be_read(hispec, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, message in (("missing", "No such file"), ("", "directory"), ("bytes", "not UTF-8")):
        assert_message_and_hint(replay(hispec, tmp_path / name), 2, message, "--replay")


def test_options_that_do_not_go_together(hispec, tmp_path):
    for arguments in (("hello", "--replay", TRACE), ("--replay", TRACE, "--verify")):
        assert_message_and_hint(hispec("generate", *arguments), 2, "--replay cannot be combined")
    assert_message_and_hint(hispec("generate", "hello", "--speed", 2), 2, "--speed", "--replay")
    assert_message_and_hint(replay(hispec, TRACE, "--live"), 2, "needs a terminal")
    assert_message_and_hint(replay(hispec, TRACE, "--live", "--format", "json"), 2, "exclude each other")
    assert_message_and_hint(hispec("generate", "--replay", TRACE, "--speed", -1), 2, "--speed")


def test_line_separators_inside_a_text_do_not_end_a_line(hispec, tmp_path):
    lines = records()
    lines[1]["text"] = "\u2028\x85"
    lines[-1]["text"] = "\u2028\x85" + ANSWER[1:]
    (tmp_path / "t").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    assert replay(hispec, tmp_path / "t").out == lines[-1]["text"] + "\n"
    assert replay(hispec, write_trace(tmp_path / "u", lines)).out == lines[-1]["text"] + "\n"
