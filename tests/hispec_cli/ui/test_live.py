"""The live view of the real program, in a pseudo-terminal."""

import io
import json
import re
import shutil
import signal
from itertools import pairwise

import pytest
from rich.console import Console

from hispec.events import Committed, Drafted, Finished, Verified
from hispec.metrics import LevelStats, Stats
from hispec_cli.ui.live import LiveView
from hispec_cli.ui.panels import wrap
from tests.hispec_cli.conftest import QUESTION
from tests.hispec_cli.ui.conftest import ANSWER, records, write_trace
from tests.hispec_cli.ui.terminal import Terminal

SUMMARY = "30 tokens · "
DRAFT, ACCEPTED, CORRECTION, STRUCK = (
    ("italics", "3b8eea"),
    ("underscore", "c27c00"),
    ("bold", "c154c1"),
    ("strikethrough",),
)


def replayed(trace, *options, **terminal):
    return Terminal("generate", "--replay", trace, *options, **terminal)


def frame(text):
    """Whether a whole frame with this text is shown."""
    return lambda terminal: text in terminal.text and "tokens per target pass" in terminal.text


@pytest.fixture(scope="module")
def endless(tmp_path_factory, shipped_model):
    """Arguments of an answer that takes a while: the shipped model, which here knows no end of text."""
    model = shutil.copytree(shipped_model, tmp_path_factory.mktemp("endless") / "model")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**config, "eos_token_id": 0}))
    return ("generate", QUESTION, "--model", model, "--max-new-tokens", 1800)


@pytest.mark.parametrize(
    ("count", "row", "runs"),
    [
        (4, "6 *", [(" * ", DRAFT)]),
        (5, "6 *", [(" * ", ACCEPTED)]),
        (14, "6 * 24 = 182", [(" * 24 = 1", ACCEPTED), ("8", STRUCK), ("2", CORRECTION)]),
        (25, "6 * 24 = 124↵24 +4", [("24↵24 +", STRUCK), ("4", CORRECTION)]),
    ],
)
def test_each_standing_has_its_style_at_known_points(held_at, count, row, runs):
    terminal = replayed(held_at(count))
    terminal.until(frame(row))
    assert terminal.screen.display[0].rstrip() == row
    assert terminal.runs(0) == runs
    terminal.press("\x03")
    assert terminal.end() == 130
    assert terminal.lines[0] == ("6 * 24 = 14" if count == 25 else "6")  # what was validated


def test_the_panel_shows_the_cycle_level_by_level_and_the_end_leaves_only_the_answer(held_at):
    terminal = replayed(held_at(46), columns=100)
    terminal.until(frame("tokens per target pass"))
    heading, draft, intermediate, target, figures = terminal.lines[-5:]
    assert heading.replace("─", " ").split() == ["this", "cycle", "accepted", "time"]
    assert draft.startswith("draft exit 1         ●●●●●●●●●●●●●● ") and "%" in draft and " ms" in draft
    assert intermediate.startswith("intermediate exit 2  ✗·✓✗✓✓✓✗✓✗✓✓✗·")
    assert target.startswith("target  ")
    assert figures.startswith("9 tokens · ") and "4.50 tokens per target pass" in figures
    assert terminal.screen.cursor.hidden
    terminal.press("\x03")
    assert terminal.end() == 130 and not terminal.screen.cursor.hidden
    assert terminal.lines == ["6 * 24 = 14", "error: interrupted"]


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
def test_afterwards_the_scrollback_holds_the_answer_and_a_summary(tmp_path, columns):
    terminal = Terminal(shell=f"hispec generate --replay {write_trace(tmp_path / 't', records())} --speed 0; echo over")
    terminal.resize(columns, 10)
    assert terminal.end() == 0
    text = "".join(terminal.text.split())
    assert text.startswith("".join(ANSWER.split())) and text.endswith("targetpassover")
    if columns >= 60:
        assert terminal.lines[:3] == ANSWER.split("\n")
        assert terminal.lines[3].startswith(SUMMARY) and terminal.lines[4:] == ["over"]
    assert not terminal.screen.cursor.hidden


def test_a_long_answer_scrolls_and_every_row_is_there_once(tmp_path):
    words = [f"word{number} " for number in range(400)]
    lines = [records()[0]]
    for number, word in enumerate(words):
        t = 0.1 + number * 0.002
        lines += [
            {"event": "drafted", "t": t, "level": "draft", "token_ids": [number], "texts": [word]},
            {"event": "judged", "t": t, "level": "target", "proposed": 1, "accepted": 1},
            {"event": "committed", "t": t, "token_ids": [number], "text": word},
        ]
    lines.append({**records()[-1], "t": 1.0, "text": "".join(words)})
    terminal = replayed(write_trace(tmp_path / "long.jsonl", lines), columns=60, rows=16)
    assert terminal.end() == 0
    answer, _ = " ".join(terminal.lines).split(f"{len(words)} tokens ")
    assert answer.split() == [word.strip() for word in words]
    assert max(map(len, terminal.lines)) <= 60


def test_resizing_in_mid_stream_leaves_nothing_behind(tmp_path, held_at):
    halves = records()
    for number, line in enumerate(halves):
        line["t"] = 0.0 if number < 46 else 3.0 if number < 66 else 1000.0
    terminal = replayed(write_trace(tmp_path / "halves.jsonl", halves), columns=100)
    terminal.until(frame("intermediate exit 2"))
    terminal.resize(60, 20)
    terminal.until(frame("24 + 144 = 1"))
    assert terminal.text.count("this cycle") == 1 and "exit 2" not in terminal.text
    assert all(len(line) <= 60 for line in terminal.lines)
    terminal.press("\x03")
    assert terminal.end() == 130
    assert terminal.lines == ["6 * 24 = 144", "24 + 144 = 1", "error: interrupted"]


def test_without_colour_the_shapes_stay(held_at):
    for options, environment in (((), {"NO_COLOR": "1"}), (("--palette", "mono"), {}), (("--color", "never"), {})):
        terminal = replayed(held_at(14), *options, columns=60, **environment)
        terminal.until(frame("182"))
        assert terminal.runs(0) == [(" * 24 = 1", ACCEPTED[:1]), ("8", STRUCK), ("2", CORRECTION[:1])]
        terminal.press("\x03")
        assert terminal.end() == 130


def test_sixteen_colours_tell_the_standings_apart(held_at):
    terminal = replayed(held_at(15), TERM="xterm-16color", COLORTERM="")
    terminal.until(frame("1820"))
    colors = [looks[-1] for _, looks in terminal.runs(0)]
    assert len({*colors}) == 4  # amber, none for struck, purple, blue
    terminal.press("\x03")
    terminal.end()


def test_a_terminal_without_unicode_gets_plain_signs(held_at):
    terminal = replayed(held_at(46), columns=60, PYTHONIOENCODING="ascii")
    terminal.until(frame("draft         oooooooooooooo "))
    assert "intermediate  x.+x+++x+x++x." in terminal.text and "124\\n24" in terminal.text and terminal.text.isascii()
    terminal.press("\x03")
    terminal.end()


def test_ctrl_z_hands_the_terminal_back_clean_and_fg_goes_on(held_at):
    terminal = Terminal(shell=f"set -m; hispec generate --replay {held_at(46)}; echo stopped; fg", columns=200)
    terminal.until(frame("this cycle"))
    terminal.press("\x1a")
    terminal.until(lambda seen: "generate --replay" in seen.text)  # what fg says
    assert "this cycle" not in terminal.text and terminal.lines[0].endswith("stopped")
    terminal.press("\x03")
    assert terminal.end() == 130 and not terminal.screen.cursor.hidden
    assert terminal.lines[-2:] == ["6 * 24 = 14", "error: interrupted"]


def test_text_from_a_trace_is_shown_and_never_obeyed(held_at):
    evil = "\x1b[2J\x1b]0;owned\x07[red]\u202eX[/red]"
    lines = records()
    lines[2]["texts"] = [evil]
    lines[1]["text"] = evil
    lines[-1]["text"] = evil + lines[-1]["text"][1:]
    for name in ("draft", "intermediate"):
        lines = json.loads(json.dumps(lines).replace(f'"{name}"', json.dumps(name + "\x1b[31m")))
    terminal = replayed(held_at(3, lines), columns=140)
    terminal.until(frame("tokens per target pass"))
    shown = "\\x1b[2J\\x1b]0;owned\\x07[red]\\u202eX[/red]"
    assert terminal.lines[0] == 2 * shown and "draft\\x1b[31m" in terminal.text
    assert b"\x1b[2J" not in terminal.sent and b"\x1b[31m" not in terminal.sent
    terminal.press("\x03")
    terminal.end()


def test_a_file_gets_the_answer_and_the_terminal_the_view(tmp_path):
    trace = write_trace(tmp_path / "t", records())
    terminal = Terminal(shell=f"hispec generate --replay {trace} > {tmp_path}/out.txt")
    assert terminal.end() == 0
    assert (tmp_path / "out.txt").read_text() == ANSWER + "\n"
    assert terminal.lines[:3] == ANSWER.split("\n") and b"this cycle" in terminal.sent


def test_silenced_it_streams_plainly_and_a_reader_that_leaves_ends_it(tmp_path):
    trace = write_trace(tmp_path / "t", records())
    terminal = Terminal(shell=f"hispec generate --replay {trace} --speed 0 2>/dev/null")
    assert terminal.end() == 0 and terminal.lines == ANSWER.split("\n") and b"\x1b" not in terminal.sent
    terminal = Terminal(shell=f"hispec generate --replay {trace} | head -c 5")
    assert terminal.end() == 0 and terminal.lines[0].startswith("6 * 2") and b"\x1b[?25l" not in terminal.sent


def test_it_can_be_turned_off(tmp_path):
    terminal = replayed(write_trace(tmp_path / "t", records()), "--no-live", "--speed", 0)
    assert terminal.end() == 0
    assert terminal.lines[:3] == ANSWER.split("\n") and b"\x1b[?25l" not in terminal.sent


def test_the_model_streams_and_ctrl_c_keeps_what_was_validated(endless):
    terminal = Terminal(*endless, columns=70, rows=13)
    terminal.until(lambda seen: seen.screen.history.top)
    terminal.press("\x03")
    assert terminal.end() == 130
    assert not terminal.screen.cursor.hidden
    *answer, error = terminal.lines
    assert error == "error: interrupted" and "tokens per target pass" in " ".join(answer[-2:])
    assert answer[0] == "4 * 3 = 12" and "this cycle" not in terminal.text and "●" not in terminal.text


def test_a_request_to_end_restores_the_terminal_and_keeps_the_text(held_at):
    terminal = replayed(held_at(46))
    terminal.until(frame("this cycle"))
    terminal.child.kill(signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM
    assert not terminal.screen.cursor.hidden and terminal.lines == ["6 * 24 = 14"]


@pytest.mark.parametrize(
    "environment",
    [{"COLUMNS": "0"}, {"COLUMNS": "1", "LINES": "0"}, {"COLUMNS": "\u00b2", "LINES": "1"}, {"COLUMNS": "9" * 30}],
)
def test_a_size_that_no_terminal_has_is_ignored(tmp_path, environment):
    terminal = replayed(write_trace(tmp_path / "t", records()), "--speed", 5, **environment)
    assert terminal.end() == 0 and terminal.lines[:3] == ANSWER.split("\n") and len(terminal.lines) == 4


@pytest.mark.parametrize(("columns", "rows"), [(0, 0), (1, 24), (2, 1), (5, 3), (10, 2)])
def test_the_smallest_terminals_get_the_whole_answer(tmp_path, columns, rows):
    trace = write_trace(tmp_path / "t", [{**line, "t": line.get("t", 0) / 5} for line in records()])
    command = f"stty columns {columns} rows {rows}; exec hispec generate --replay {trace}"
    terminal = Terminal(shell=command, columns=columns or 80, rows=rows or 24)
    assert terminal.end() == 0
    assert "".join(terminal.text.split()).startswith("".join(ANSWER.split()))


def unwrapped(terminal):
    """The text that is copied from a terminal: a row that ends in its last column continues in the next one."""
    width = terminal.screen.columns
    rows = ["".join(row[column].data for column in range(width)) for row in terminal.screen.history.top]
    rows += terminal.screen.display
    return "".join(row if number in terminal.screen.wrapped else row.rstrip() + "\n" for number, row in enumerate(rows))


@pytest.mark.parametrize(
    "pieces",
    [
        [f"{'word' * (number % 4)}{number} " for number in range(300)],
        ["漢字仮名交じり文"[number % 8] for number in range(600)],
        ["unbroken"] * 150 + ["\n\n", "end"],
    ],
)
@pytest.mark.parametrize("columns", [60, 100])  # even: the emulator knows no wide sign at the end of a row
def test_a_paragraph_is_one_line_to_whoever_copies_it_and_no_word_is_broken(tmp_path, pieces, columns):
    lines, answer = [records()[0]], "".join(pieces)
    for number, piece in enumerate(pieces):
        at = {"t": 0.1 + number / 200}
        lines.append({"event": "drafted", **at, "level": "draft", "token_ids": [1], "texts": [piece]})
        lines.append({"event": "judged", **at, "level": "target", "proposed": 1, "accepted": 1})
        lines.append({"event": "committed", **at, "token_ids": [1], "text": piece})
    trace = write_trace(tmp_path / "t", [*lines, {**records()[-1], "t": 3.2, "text": answer}])
    terminal = replayed(trace, columns=columns, rows=9)
    assert terminal.end() == 0 and terminal.screen.history.top
    paragraphs = [re.sub(" +", " " if " " in answer else "", line).strip() for line in unwrapped(terminal).split("\n")]
    assert paragraphs[: answer.count("\n") + 1] == [line.strip() for line in answer.split("\n")]
    assert not any(line.endswith("word") for line in terminal.lines)


def test_a_row_that_goes_on_is_not_printed_again_in_another_window(tmp_path):
    lines, words = [records()[0]], [f"word{number} " for number in range(300)]
    for number, word in enumerate(words):
        at = {"t": 0.1 if number < 150 else 4.0}
        lines.append({"event": "drafted", **at, "level": "draft", "token_ids": [1], "texts": [word]})
        lines.append({"event": "judged", **at, "level": "target", "proposed": 1, "accepted": 1})
        lines.append({"event": "committed", **at, "token_ids": [1], "text": word})
    trace = write_trace(tmp_path / "t", [*lines, {**records()[-1], "t": 4.0, "text": "".join(words)}])
    terminal = replayed(trace, columns=60, rows=16)
    terminal.until(frame("word140"))
    terminal.settle()
    terminal.resize(90, 20)
    at = len(terminal.sent)
    assert terminal.end() == 0
    assert b"\x1b[A" not in terminal.sent[at:]  # where that row is now nobody knows
    answer, _ = " ".join(terminal.lines).split(f"{len(words)} tokens ")
    assert answer.split() == [word.strip() for word in words]


def test_what_is_typed_meanwhile_is_not_shown_and_belongs_to_the_shell_afterwards(held_at):
    command = f"trap : INT; hispec generate --replay {held_at(46)}; stty -a | grep -c -- '[^-]echo '; read line; echo got $line"
    terminal = Terminal(shell=command)
    terminal.until(frame("this cycle"))
    terminal.press("typed\n")
    terminal.settle()
    assert "typed" not in terminal.text
    terminal.press("\x03")  # which would empty the terminal's queue
    terminal.end()
    assert terminal.lines[-2:] == ["1", "got typed"] or terminal.lines[-3:] == ["1", "typed", "got typed"]


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_frames_are_at_least_a_tenth_of_a_second_apart_and_take_a_hundredth_of_the_time():
    clock, frames = Clock(), []

    class Slow(LiveView):
        def draw(self):
            frames.append(clock.now)
            clock.now += 0.005
            super().draw()

    view = Slow(Console(file=io.StringIO()), Stats([LevelStats("draft", "m", 1)], "target"), clock=clock)
    with view:
        for _ in range(20_000):
            clock.now += 0.001
            view.see(Committed(clock.now, (1,), "a"))
    assert len(frames) * 0.005 <= 0.01 * clock.now
    assert len(frames) > 10
    assert all(later - earlier >= 0.1 for earlier, later in pairwise(frames))


def test_it_shows_events_on_their_way():
    screen = io.StringIO()
    view = LiveView(Console(file=screen, width=60), Stats([LevelStats("draft", "m", 1)], "target"))
    events = [
        Committed(0, (1,), "a"),
        Drafted(0, "draft", (2,), texts=("b",)),
        Verified(0, "target", 1, 1),
        Committed(0, (2,), "b"),
        Finished(0, "eos"),
    ]
    assert list(view.follow(events)) == events
    assert screen.getvalue().endswith("\x1b[?25hab\n")


@pytest.mark.parametrize("width", [1, 7, 20])
@pytest.mark.parametrize(
    "text",
    ["", "one two three four", "    indented text", "unbreakablelongword", "漢字漢字 漢字", "a\n\nb\n", "é👍🏽 x"],
)
def test_wrapping_loses_only_the_spaces_it_breaks_at(text, width):
    from rich.cells import get_character_cell_size

    rows = [text[span.start : span.end] for span in wrap(text, width)]
    gaps = [text[span.end : span.following] for span in wrap(text, width)]
    assert "".join(row + gap for row, gap in zip(rows, gaps, strict=True)) == text
    assert {*gaps} <= {"", " ", "\n"}
    assert all(sum(map(get_character_cell_size, row)) <= max(width, 2) for row in rows)
