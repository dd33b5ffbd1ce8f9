"""A person at a terminal who chats, and folders of their own for what chat keeps."""

import sys

import pytest

from hispec.session import read_session
from tests.hispec_cli.ui.terminal import Terminal

APPLES = "Anna has 3 apples. Ben has 4 times as many. How many apples do they have together?"
CARDS = "Ben has 12 cards. Mei gives Ben 5 more. How many cards does Ben have?"
WHO = "Who are you?"


class Person:
    """Starts `hispec chat` and talks with it.

    Args:
        home: a folder; what chat keeps goes there.
        arguments: the arguments of `hispec chat`.
        early: the keys that are typed while the model loads.
        terminal: the arguments of `Terminal`.
    """

    def __init__(self, home, *arguments, early="", **terminal):
        self.home = home
        self.control = home / "control"
        words = " ".join(f"'{argument}'" for argument in arguments)
        environment = {"XDG_DATA_HOME": f"{home}/data", "XDG_STATE_HOME": f"{home}/state", "HELD_AT": str(self.control)}
        self.terminal = Terminal(
            shell=f"exec {sys.executable} -m tests.hispec_cli.chat.held chat {words}", **environment | terminal
        )
        if early:
            self.terminal.until(lambda seen: any("importing torch" in line for line in seen.lines))
            self.terminal.press(early)
        self.wait()

    @property
    def lines(self):
        """The visible text, without the blank lines above prompts."""
        lines = self.terminal.lines
        return [line for line, next_ in zip(lines, [*lines[1:], ""], strict=True) if line or not next_.startswith(">")]

    def wait(self):
        """Until it waits for input, with nothing typed."""
        self.terminal.until(lambda seen: seen.lines and seen.lines[-1] == ">")

    def type(self, keys, seen):
        """Type, until the last lines to be seen are these."""
        self.terminal.press(keys)
        self.terminal.until(lambda terminal: terminal.lines[-seen.count("\n") - 1 :] == seen.split("\n"))

    def send(self, text):
        """Send a line; returns the lines that follow until the next prompt."""
        before = self.prompts()
        self.terminal.press(text + "\r")
        self.go_on(before)
        at = max(number for number, line in enumerate(self.lines[:-1]) if line.startswith(">"))
        return self.lines[at + 1 : -1]

    def hold(self, step, text):
        """Send a line whose answer is held at a step."""
        held = self.control.with_name("held")
        held.unlink(missing_ok=True)
        self.control.write_text(step)
        before = self.prompts()
        self.terminal.press(text + "\r")
        self.terminal.until(lambda _: held.exists())
        return before

    def go_on(self, before):
        """Wait for the next prompt after that many."""
        self.terminal.until(lambda seen: seen.lines[-1] == ">" and self.prompts() > before)

    def session(self, name):
        """A session as it is on disk."""
        return read_session(self.home / "data" / "hispec" / "sessions" / f"{name}.json")

    def leave(self):
        """Ctrl-D; returns the exit code."""
        self.terminal.press("\x04")
        return self.terminal.end()

    def prompts(self):
        """The number of times that it has begun to wait for input, which it reports to the terminal."""
        return self.terminal.sent.count(b"\x1b[?2004h")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def person(home):
    """Somebody who has been chatting, in the session `talk`; each test begins a new conversation."""
    person = Person(home, "--session", "talk", columns=120, rows=40)
    yield person
    person.terminal.child.close(force=True)


@pytest.fixture(autouse=True)
def _own_folders(home, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", f"{home}/data")
    monkeypatch.setenv("XDG_STATE_HOME", f"{home}/state")
