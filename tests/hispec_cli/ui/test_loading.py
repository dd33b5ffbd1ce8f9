"""A sign of life while a model loads: on a terminal one line that goes, elsewhere plain lines of what takes long."""

import io
import sys

import pytest

from hispec.progress import Progress
from hispec_cli.ui import loading as module
from hispec_cli.ui.loading import Loading
from tests.hispec_cli.conftest import QUESTION
from tests.hispec_cli.ui.terminal import Terminal


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    monkeypatch.setattr("hispec_cli.ui.progress.monotonic", clock)
    monkeypatch.setattr(module, "TICK_S", 3600.0)
    return clock


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_what_is_over_soon_says_nothing(clock, capsys):
    with Loading("importing torch") as loading:
        for done in range(11):
            clock.now += 0.9
            loading.see(Progress("reading", "some model", 1000, done * 100))
        loading.hold("measuring threads")
    assert lines(capsys) == []


def test_reading_that_takes_long_is_told_by_tenths(clock, capsys):
    with Loading("importing torch") as loading:
        loading.see(Progress("reading", "some model", 2_000_000, 0))
        for done in range(1, 101):
            clock.now += 0.5
            loading.see(Progress("reading", "some model", 2_000_000, done * 20_000))
    told = lines(capsys)
    assert told[0] == "reading some model: 400.0 kB of 2.0 MB"
    assert told[-1] == "reading some model: 2.0 MB of 2.0 MB" and len(told) == 9


@pytest.mark.parametrize("doing", ["reading", "quantizing"])
def test_the_slowest_is_told_every_half_minute(clock, capsys, doing):
    with Loading("importing torch") as loading:
        loading.see(Progress(doing, "m", 10**12, 0))
        for minutes in range(1, 4):
            clock.now += 60
            loading.see(Progress(doing, "m", 10**12, minutes * 10**9))
    assert [line.rpartition(": ")[2] for line in lines(capsys)] == [f"{n}.0 GB of 1.0 TB" for n in (1, 2, 3)]


def test_what_tells_nothing_of_itself_is_told_every_half_minute(monkeypatch, clock, capsys):
    with Loading("importing torch") as loading:
        clock.now += 29
        loading._tell()
        clock.now += 2
        loading._tell()
    assert lines(capsys) == ["still importing torch, for 31 s"]


def test_a_download_is_told_at_once(clock, capsys):
    with Loading("importing torch") as loading:
        for done in (0, 500, 1000):
            loading.see(Progress("downloading", "3 files", 1000, done))
    assert lines(capsys) == ["downloading 3 files, 1.0 kB", "downloaded 500 B of 1.0 kB", "downloaded 1.0 kB of 1.0 kB"]


@pytest.mark.parametrize(("name", "value"), [("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1")])
def test_nothing_is_drawn_where_nobody_looks_whatever_the_environment_says(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Loading("importing torch") as loading:
        loading.see(Progress("reading", "m", 10, 5))
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("extra", [("--no-live",), ("--format", "json")])
def test_a_terminal_sees_one_line_before_torch_is_there_and_nothing_of_it_in_the_end(extra):
    terminal = Terminal("generate", QUESTION, *extra, columns=24)
    terminal.until(lambda t: "importing torch" in t.text)
    assert len(terminal.lines) == 1
    assert terminal.end() == 0
    assert terminal.lines[0].startswith("{" if "json" in extra else "4 * 3 = 12"), terminal.text
    assert "importing" not in terminal.text and "opening" not in terminal.text
    assert b"\x1b[?25l" not in terminal.sent  # a process that is killed could not show the cursor again


def test_ctrl_c_leaves_a_clean_line_and_exits_130():
    terminal = Terminal("generate", QUESTION)
    terminal.until(lambda t: "importing torch" in t.text)
    terminal.press("\x03")
    assert terminal.end() == 130
    assert terminal.lines == ["error: interrupted"]


def test_a_dumb_terminal_gets_no_escapes():
    terminal = Terminal("generate", QUESTION, "--no-live", TERM="dumb")
    assert terminal.end() == 0
    assert b"\x1b" not in terminal.sent and b"importing" not in terminal.sent
