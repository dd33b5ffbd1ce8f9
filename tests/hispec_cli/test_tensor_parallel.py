"""`torchrun ... hispec generate --tensor-parallel` as the documentation has it, and how it ends when it fails."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from hispec import Engine
from hispec.errors import UnavailableError, is_lost_peer
from hispec_cli import app
from tests.support import random_model

PROMPT = "Ben has 12 cards. Mei gives Ben 5 more. How many cards does Ben have?"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hispec_cli", "generate"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def test_two_ranks_answer_and_verify_what_one_process_answers():
    options = ["--policy", "adaptive", "--temperature", "0.9", "--seed", "3", "--max-new-tokens", "24"]
    command = [*TORCHRUN, "--tensor-parallel", "--profile", "tiny", "--verify", "--format", "json", *options]
    done = subprocess.run(command, env=ENVIRONMENT, input=PROMPT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    one = Engine.from_profile("tiny", temperature=0.9, seed=3, max_new_tokens=24).generate(PROMPT)
    assert (record["prompt"], record["token_ids"]) == (PROMPT, one.token_ids)
    count = len(one.token_ids)
    assert done.stderr.splitlines() == [f"verified: {count} token ids, identical to the target's own"]


@pytest.fixture(scope="module")
def endless(tmp_path_factory, shipped_model):
    """The profile of a random model that hardly ever ends a text."""
    folder = tmp_path_factory.mktemp("endless")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    random_model(vocab=len(tokenizer), max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    target = {"model": str(folder), "dtype": "float32"}
    (folder / "profile.yaml").write_text(yaml.safe_dump({"target": target, "draft": {"exit_layer": 1}}))
    return folder / "profile.yaml"


def ranks_of(process):
    """Return the processes that torchrun has started, by their rank."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environ = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(value[5:]): int(child) for value in environ if value.startswith(b"RANK=")}
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("end", ["Ctrl-C", "a rank dies"])
def test_an_answer_of_two_ranks_ends_with_a_message(endless, end):
    command = [*TORCHRUN, PROMPT, "--tensor-parallel", "--profile", str(endless), "--mode", "single-layer"]
    command += ["--max-new-tokens", "3000", "--format", "jsonl"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes) as process:
        assert process.stdout is not None
        begun = next(line for line in process.stdout if json.loads(line)["event"] == "committed")
        if end == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            os.kill(ranks_of(process)[1], signal.SIGKILL)
        written, told = process.communicate(timeout=240)
    assert process.returncode == 1  # that of torchrun
    told = [line for line in told.splitlines() if line.startswith(("error:", "hint:"))]
    events = [json.loads(line) for line in [begun, *written.splitlines()]]
    tokens = sum(len(event["token_ids"]) for event in events if event["event"] == "committed")
    assert 0 < tokens < 3000
    if end == "Ctrl-C":
        assert told == ["error: interrupted"]
        assert (events[-1]["finish_reason"], len(events[-1]["token_ids"])) == ("interrupted", tokens)
    else:
        assert told == [
            "error: another process of this run has ended",
            "hint: see its own message, or that of torchrun",
        ]


@pytest.mark.parametrize(
    ("rank", "connected", "error", "told"),
    [
        (0, False, None, "error: --tensor-parallel is for hispec generate alone"),
        (1, False, None, ""),
        (1, True, None, ""),
        (0, True, RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error"), "error: another process of this run"),
        (1, True, RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error"), ""),
        (1, True, UnavailableError("no memory", "buy some"), "error: rank 1: no memory"),
        (1, True, RuntimeError("CUDA out of memory"), "error: rank 1: the memory ran out"),
        (1, False, UnavailableError("no weights", "download them"), ""),  # which rank 0 lacks, too
    ],
)
def test_what_all_ranks_meet_is_told_by_the_first_and_the_rest_by_those_who_meet_it(
    monkeypatch, capsys, rank, connected, error, told
):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    waited = []
    monkeypatch.setattr(app, "sleep", waited.append)
    monkeypatch.setattr(app, "is_connected", lambda: connected)
    if error is not None:

        def fail(*_args, **_options):
            raise error

        monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    assert app.run(["bench", "--tensor-parallel"]) in (2, 5)
    found = capsys.readouterr().err
    assert found.startswith(told) and (told or not found)
    assert bool(waited) == (not told)  # until the first has spoken


def test_other_failures_are_no_lost_peers():
    assert not is_lost_peer(RuntimeError("out of memory")) and not is_lost_peer(ValueError("gloo/transport"))
