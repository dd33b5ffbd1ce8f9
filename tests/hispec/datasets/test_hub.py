"""Datasets from a hub: the pinned file is downloaded once, then read from the cache; failures are reported at once."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from hispec.datasets import DATASETS
from tests.hub import gsm8k_repository, serve

PROGRAM = """
import json, sys
from hispec.datasets import load
from hispec.errors import HispecError

def told(name, options):
    try:
        loaded = load(name, **options)
        return {"rows": [row.turns[0][-60:] for row in loaded.rows], "sha256": loaded.sha256, "source": loaded.source}
    except HispecError as error:
        return {"code": error.exit_code, "message": error.message, "hint": error.hint}

requests = json.loads(sys.argv[1])
assert "datasets" not in sys.modules and "huggingface_hub" not in sys.modules
print(json.dumps([told(name, options) for name, options in requests]))
"""


@pytest.fixture
def folder(tmp_path):
    return gsm8k_repository(tmp_path / "hub")


@pytest.fixture
def ask(tmp_path):
    """Load in a process of its own, so that the hub's client reads the environment again."""

    def call(endpoint, *requests, **environment):
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"} | environment
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(requests)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    return call


def test_gsm8k_is_downloaded_once_and_then_read_from_the_cache(folder, ask):
    hub = DATASETS["gsm8k"].hub
    with serve(folder) as (endpoint, seen):
        first, part = ask(endpoint, ("gsm8k", {}), ("gsm8k", {"limit": 20}))
        files = [(method, path) for method, path in seen if path.startswith("/datasets/")]
        assert {path for _, path in files} == {f"/datasets/{hub.repo}/resolve/{hub.revision}/{hub.path}"}
        assert [method for method, _ in files].count("GET") == 1
        asked = len(seen)
        offline = [*ask(endpoint, ("gsm8k", {"offline": True})), *ask(endpoint, ("gsm8k", {}), HF_HUB_OFFLINE="1")]
        assert len(seen) == asked
    assert first["source"] == f"openai/gsm8k@{hub.revision}"
    assert len(first["rows"]) == 30 and part["rows"] == first["rows"][:20]
    assert first["rows"][29].endswith("test set holds 29 pens. How many are in 50 boxes?\nAnswer:")
    assert offline == [first, first]
    assert ask("http://127.0.0.1:9", ("gsm8k", {})) == [first]  # the network may be gone without anybody saying so


def test_what_the_hub_does_not_give_is_told(folder, ask):
    for repository in ("EdinburghNLP/xsum", "HuggingFaceH4/mt_bench_prompts", "openai/openai_humaneval"):
        (folder / "datasets" / repository).mkdir(parents=True)
    refusals = {
        "datasets/openai/gsm8k": "GatedRepo",
        "datasets/EdinburghNLP/xsum": "RevisionNotFound",
    }
    with serve(folder, refusals) as (endpoint, _):
        answers = ask(endpoint, *((name, {}) for name in ("gsm8k", "xsum", "humaneval", "cnn_dailymail")))
    messages = [
        "openai/gsm8k is gated",
        "EdinburghNLP/xsum has no revision 7d4d",
        "has no file openai_humaneval/",
        "cnn",
    ]
    for answer, message, name in zip(answers, messages, ("gsm8k", "xsum", "humaneval", "cnn_dailymail"), strict=True):
        assert answer["code"] == 5 and message in answer["message"], answer
        assert answer["hint"].endswith(f"or pass a file: --dataset FILE --format-as {name}")
    assert "hf auth login" in answers[0]["hint"]


def test_without_network_and_cache_that_is_told(ask):
    online, offline = ask("http://127.0.0.1:9", ("gsm8k", {}), ("gsm8k", {"offline": True}))
    assert online["code"] == offline["code"] == 5
    assert "cannot be downloaded: [Errno" in online["message"] and "check the network" in online["hint"]
    assert "is not in the hub's cache" in offline["message"] and "--offline" in offline["hint"]


def test_a_hub_that_hangs_up_is_asked_once(ask):
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls = []

        def hang_up():
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    calls.append(connection.recv(1000))
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        (answer,) = ask(f"http://127.0.0.1:{server.getsockname()[1]}", ("gsm8k", {}))
    assert answer["code"] == 5
    assert sum(b" /datasets/" in call for call in calls) == 1
