"""Behaviour that only a separate process can show: start-up, pipes, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hispec_cli.__main__ import WAITING
from tests.hispec_cli.conftest import QUESTION
from tests.hispec_cli.ui.terminal import Terminal


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("generate", "--help"),
        ("profile", "list"),
        ("chat", "--list-sessions", "--format", "json"),
    ],
)
def test_answers_without_importing_torch(arguments):
    code = f"""
import sys
from hispec_cli.app import run
code = run({list(arguments)!r})
sys.exit(code or (9 if "torch" in sys.modules or "transformers" in sys.modules else 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_reader_that_leaves_ends_it_cleanly(process):
    child = process("generate", QUESTION)
    assert child.stdout.read(1)
    child.stdout.close()
    assert child.wait(60) == 0
    assert child.stderr.read() == b""


@pytest.mark.parametrize("delay", [0.3, 0.6, 1.2, 2.0, 3.0])
def test_ctrl_c_while_starting_and_loading_exits_130_without_a_traceback(process, endless, delay):
    child = process(*endless)
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    child.stdout.read()
    errors = child.stderr.read()
    if b"Fatal Python error" in errors:
        pytest.skip("the interpreter itself was not up yet")
    assert child.wait(60) == 130, errors
    assert errors == b"error: interrupted\n"


def test_ctrl_c_keeps_what_was_validated(process, endless):
    child = process(*endless, "--format", "jsonl")
    lines = []
    for line in child.stdout:
        lines.append(json.loads(line))
        if len(lines) == 40:
            child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    finished = lines[-1]
    assert (finished["event"], finished["finish_reason"]) == ("finished", "interrupted")
    committed = [token for line in lines if line["event"] == "committed" for token in line["token_ids"]]
    assert finished["token_ids"] == committed and 0 < len(committed) < 1800
    assert b"Traceback" not in child.stderr.read()


def test_ctrl_c_while_verifying_exits_130_and_loses_no_answer(hispec, monkeypatch):
    from hispec.api import Engine

    verify = Engine.check_lossless

    def interrupted(self, generation):
        decoder = self.decoder

        def signalled(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            return decoder(*arguments)

        monkeypatch.setattr(self, "decoder", signalled, raising=False)
        verify(self, generation)

    monkeypatch.setattr(Engine, "check_lossless", interrupted)
    for format_ in ("json", "jsonl"):
        outcome = hispec("generate", QUESTION, "--verify", "--format", format_)
        record = json.loads(outcome.out.splitlines()[-1])
        assert outcome.code == 130 and record["finish_reason"] == "eos" and "verified" not in record


@pytest.mark.parametrize(
    ("redirection", "code", "out", "err"),
    [
        ("2>&-", 0, "####", ""),
        (">&-", 0, "", ""),
        (">/dev/full", 5, "", "error: standard output cannot be written"),
        ("<&-", 0, "####", ""),
    ],
)
def test_streams_that_are_closed_or_full(redirection, code, out, err):
    command = f"{sys.executable} -m hispec_cli generate '{QUESTION}' {redirection}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    assert out in done.stdout and (done.stderr.startswith(err) if err else done.stderr == "")
    assert "bug" not in done.stderr and "error" not in done.stdout


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, shipped_model):
    """The shipped model, with letters and signs of other scripts in place of its own."""
    model = shutil.copytree(shipped_model, tmp_path_factory.mktemp("foreign") / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    written = {"type": "Replace", "pattern": {"String": "="}, "content": "\u00e9\u6f22\U0001f600"}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], written]}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return model


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        ("cp1252", ("generate", QUESTION)),
        ("latin-1", ("generate", QUESTION, "--format", "json")),
        ("ascii", ("generate", QUESTION, "--format", "jsonl")),
        ("koi8-r", ("chat",)),
        ("ascii:strict", ("chat", "--format", "json")),
    ],
)
def test_what_stdout_cannot_encode_becomes_an_escape(foreign, arguments, encoding):
    done = subprocess.run(
        [sys.executable, "-m", "hispec_cli", *arguments, "--model", foreign, "--max-new-tokens", "12"],
        capture_output=True,
        input=f"{QUESTION}\n/system \u6f22\u5b57\n".encode() if arguments[0] == "chat" else b"",
        env={**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    codec = encoding.partition(":")[0]
    out = done.stdout.decode(codec)
    if "--format" in arguments:  # still JSON, and none of it lost
        assert any(
            "\u00e9\u6f22\U0001f600" in json.dumps(json.loads(line), ensure_ascii=False) for line in out.splitlines()
        )
    else:
        assert "\u00e9\u6f22\U0001f600".encode(codec, "backslashreplace").decode(codec) in out
    if arguments == ("chat",):
        assert b"system: \\u6f22\\u5b57" in done.stderr


def test_tables_and_messages_that_stdout_cannot_encode(tmp_path):
    profile = tmp_path / "漢字.yaml"
    profile.write_text("target: {model: builtin:tiny}\ndescription: 漢字\n", encoding="utf-8")
    bench = ("bench", "--limit", "1", "--warmup", "0", "--max-new-tokens", "4", "--arms", "autoregressive")
    environment = {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(tmp_path)}
    for arguments, code in (
        ((*bench, "--profile", profile), 0),
        (("profile", "show", profile), 0),
        (("profile", "show", "漢字"), 2),
        (("doctor", "--profile", profile), 0),
    ):
        command = [sys.executable, "-m", "hispec_cli", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, env={**os.environ, **environment})
        assert done.returncode == code, done.stderr
        assert b"\\u6f22\\u5b57" in done.stdout + done.stderr and b"bug" not in done.stderr
    terminal = Terminal(*bench, "--profile", profile, **environment)  # where the table is drawn
    assert terminal.end() == 0 and "\\u6f22\\u5b57 on sample" in terminal.text


def test_a_closed_stderr_shows_no_error_on_stdout():
    command = f"{sys.executable} -m hispec_cli generate --bogus 2>&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_closed_stderr_does_no_harm(process):
    child = process("generate", QUESTION, "--verify")
    child.stderr.close()
    assert b"####" in child.stdout.read()
    assert child.wait(60) == 0
    child.stderr = open(os.devnull)  # noqa: SIM115, PTH123


def test_a_warning_is_one_line_without_where_it_comes_from():
    code = """
import sys, warnings
import hispec_cli.app
from hispec_cli.__main__ import main
hispec_cli.app.run = lambda arguments: warnings.warn("slower than\\x1b[2J it could be\\nand more", RuntimeWarning) or 0
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: slower than") and done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("own", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "9"}, None)]
)
def test_threads_that_wait_sleep_unless_the_user_has_said_how_they_wait(own, policy):
    """It must be said before torch is imported, and the command line says it, not the library."""
    code = (
        "import os, sys; import hispec_cli.app as app; from hispec_cli.__main__ import main;"
        "first = os.environ.get('OMP_WAIT_POLICY');"
        "app.run = lambda _: print(first, os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules) or 0; main()"
    )
    clean = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | own)
    assert done.stdout.split() == [str(own.get("OMP_WAIT_POLICY")), str(policy), "False"], done.stderr
