"""Runs the command line: inside this process for speed, or as its own process where signals and pipes matter."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from hispec_cli.app import run

QUESTION = "Anna has 3 apples. Ben has 4 times as many. How many apples do they have together?"


@dataclass
class Outcome:
    """The result of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def hispec(capfd, monkeypatch):
    """Run one command line; standard input is empty unless given."""

    def call(*arguments, stdin=None):
        capfd.readouterr()
        if stdin is None:
            monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123
        else:
            reader, writer = os.pipe()
            os.write(writer, stdin if isinstance(stdin, bytes) else stdin.encode())
            os.close(writer)
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(os.fdopen(reader, "rb")))
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def process():
    """Start `hispec` as a process of its own."""
    started = []

    def start(*arguments, **environment):
        command = [sys.executable, "-m", "hispec_cli", *map(str, arguments)]
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            # A shell that starts tests in the background lets them, and so their children, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        for stream in (child.stdout, child.stderr):
            stream.close()


def assert_message_and_hint(outcome, code, message, hint=""):
    """The promised exit code, one line of message, one of hint, no traceback, and nothing on stdout."""
    assert outcome.code == code, outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), outcome.err
    assert message in lines[0] and hint in lines[1], outcome.err
    assert outcome.out == ""


@pytest.fixture(scope="session")
def endless(tmp_path_factory, shipped_model):
    """Arguments of an answer that takes a while: the shipped model, which here knows no end of text."""
    model = shutil.copytree(shipped_model, tmp_path_factory.mktemp("endless") / "model")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**config, "eos_token_id": 0}))
    return ("generate", QUESTION, "--model", model, "--max-new-tokens", 1800, "--mode", "autoregressive")
