"""Checkpoints of every kind from a hub, through its real client: each loads, or is refused with message and hint."""

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from tests.hub import commit_of, serve
from tests.support import random_model

PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from hispec_cli.app import run

def told(arguments):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(arguments)
    return code, out.getvalue(), err.getvalue()

print(json.dumps([told(arguments) for arguments in json.loads(sys.argv[1])]))
"""
INDEX = "model.safetensors.index.json"


def save(folder, tokenizer, *, seed=0, shard="60KB", **changes):
    """A random Llama in `folder` in shards, with a tokenizer."""
    model = random_model(vocab=len(tokenizer), seed=seed, **changes)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shipped_model):
    """The checkpoints of the hub, described by their names."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    sharded = save(folder / "org" / "sharded", tokenizer)
    assert len(list(sharded.glob("*.safetensors"))) > 3
    save(folder / "org" / "sharded@v2", tokenizer, seed=1)
    save(folder / "org" / "single", tokenizer, shard="1GB", tie_word_embeddings=True)
    for name in ("unlicensed", "forbidden"):
        save(folder / "org" / name, tokenizer)
    lacking = save(folder / "org" / "lacking", tokenizer)
    next(lacking.glob("model-00002-*")).unlink()
    for name, damage in (("cut", lambda data: data[: len(data) // 2]), ("noise", lambda data: b"\xff" * len(data))):
        shard = next(save(folder / "org" / name, tokenizer).glob("model-00002-*"))
        shard.write_bytes(damage(shard.read_bytes()))
    moved = save(folder / "org" / "outside", tokenizer)
    index = json.loads((moved / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../sharded/model-00001-of-00004.safetensors"
    (moved / INDEX).write_text(json.dumps(index))
    elsewhere = save(folder / "org" / "misfiled", tokenizer)
    index = json.loads((elsewhere / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"] = dict.fromkeys(index["weight_map"], shards[0])
    (elsewhere / INDEX).write_text(json.dumps(index))
    pickled = save(folder / "org" / "pickled", tokenizer, shard="1GB")
    (pickled / "pytorch_model.bin").write_bytes(TRAP)
    (pickled / "model.safetensors").unlink()
    empty = save(folder / "org" / "empty", tokenizer, shard="1GB")
    (empty / "model.safetensors").unlink()
    foreign = save(folder / "org" / "foreign", tokenizer)
    config = json.loads((foreign / "config.json").read_text()) | {"model_type": "made_up"}
    (foreign / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "code.Config"}}))
    (foreign / "code.py").write_text("raise SystemExit('foreign code was run')")
    return folder


TRAP = b"cos\nsystem\n(S'touch /tmp/unpickled-by-hispec; kill -9 $PPID'\ntR."
"""A pickle that ends the process that loads it."""


@pytest.fixture(scope="module")
def hispec(tmp_path_factory):
    """Run command lines in one process of its own, so that the hub's client reads the environment again."""
    home = tmp_path_factory.mktemp("home")

    def call(endpoint, *commands, **environment):
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"} | environment
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(commands)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    return call


def ask(model, *extra):
    return ["generate", "Hello", "--model", str(model), "--max-new-tokens", "6", "--format", "json", *extra]


def profile(tmp_path, model, revision):
    path = tmp_path / f"{revision}.yaml"
    path.write_text(f"target: {{model: {model}, revision: {revision}}}\ndraft: {{exit_layer: 1}}\n")
    return ["generate", "Hello", "--profile", str(path), "--max-new-tokens", "6", "--format", "json"]


def ids_of(answer):
    code, out, err = answer
    assert code == 0, err
    return json.loads(out)["token_ids"]


def test_what_is_whole_loads_and_then_loads_offline_from_the_cache(folder, hispec, tmp_path):
    commands = [
        ask("org/sharded"),
        ask("org/single"),
        ask("org/sharded", "--stack", "transformers"),
        profile(tmp_path, "org/sharded", "v2"),
        profile(tmp_path, "org/sharded", commit_of("v2")),
    ]
    local = [ask(folder / "org" / name) for name in ("sharded", "single", "sharded@v2")]
    with serve(folder) as (endpoint, seen):
        online = hispec(endpoint, *commands, *local)
        ids, (sharded, single, second) = [ids_of(answer) for answer in online[:5]], map(ids_of, online[5:])
        assert ids == [sharded, single, sharded, second, second] and sharded != second
        assert json.loads(online[3][1])["environment"]["revision"] == commit_of("v2")
        shards = [path for method, path in seen if method == "GET" and "-of-" in path]
        assert len(shards) == len(set(shards)) == 2 * len(list((folder / "org" / "sharded").glob("*.safetensors")))
        asked = len(seen)
        offline = hispec(endpoint, *([*command, "--offline"] for command in commands))
        assert len(seen) == asked
    assert [ids_of(answer) for answer in offline] == ids
    unreachable = hispec("http://127.0.0.1:9", *commands[:2])
    assert [ids_of(answer) for answer in unreachable] == ids[:2]


@pytest.fixture(scope="module")
def refusals(folder, hispec):
    """The answers to everything that is to be refused, by model, and the requests seen."""
    gates = {"org/unlicensed": (401, "GatedRepo"), "org/forbidden": (403, "GatedRepo")}
    with serve(folder, gates) as (endpoint, seen):
        names = ["unlicensed", "forbidden", "lacking", "cut", "noise", "outside", "misfiled", "pickled", "empty"]
        commands = {name: ask(f"org/{name}") for name in [*names, "foreign", "none"]}
        slow = ("lacking", "cut", "misfiled", "pickled")
        commands |= {f"{name} transformers": ask(f"org/{name}", "--stack", "transformers") for name in slow}
        commands |= {f"{name} folder": ask(folder / "org" / name) for name in ("lacking", "cut", "pickled", "empty")}
        answers = dict(zip(commands, hispec(endpoint, *commands.values()), strict=True))
        return answers | {"endpoint": endpoint, "seen": seen}


REFUSED = {
    "unlicensed": (5, "org/unlicensed is gated", "ENDPOINT/org/unlicensed, then log in with: hf auth login"),
    "forbidden": (5, "org/forbidden is gated", "ENDPOINT/org/forbidden, then log in with: hf auth login"),
    "lacking": (5, "its index names model-00002-of-", "another revision"),
    "cut": (5, "org/cut are damaged: model-00002-of-", "hf download org/cut model-00002-of-"),
    "noise": (5, "org/noise are damaged: model-00002-of-", "--force-download"),
    "outside": (5, "names a file outside of it: ../sharded/", "another checkpoint"),
    "misfiled": (5, "incomplete: lm_head.weight", "download"),
    "pickled": (5, "are pickled (pytorch_model.bin)", "safetensors"),
    "empty": (5, "org/empty has no weights: neither model.safetensors", "another checkpoint"),
    "foreign": (2, "org/foreign needs code from its checkpoint", "transformers knows"),
    "none": (5, "the hub has no model org/none", "hf auth login"),
    "lacking folder": (5, "its index names model-00002-of-", "copy the whole folder"),
    "cut folder": (5, "are damaged: model-00002-of-", "download or save the model again"),
    "pickled folder": (5, "are pickled (pytorch_model.bin)", "safetensors"),
    "empty folder": (5, "has no weights", "the folder is complete"),
}
REFUSED |= {f"{name} transformers": REFUSED[name] for name in ("lacking", "cut", "misfiled", "pickled")}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_whole_is_refused_with_message_and_hint(refusals, name):
    code, message, hint = REFUSED[name]
    found, out, err = refusals[name]
    lines = [line for line in err.splitlines() if not line.startswith("download")]
    assert (found, out, len(lines)) == (code, "", 2), err
    assert lines[0].startswith("error: ") and message in lines[0], err
    assert lines[1].startswith("hint: ") and hint.replace("ENDPOINT", refusals["endpoint"]) in lines[1], err


def test_nothing_is_fetched_of_weights_that_will_be_refused(refusals):
    weights = [path for method, path in refusals["seen"] if method == "GET" and path.endswith((".safetensors", ".bin"))]
    fetched = {path.split("/")[2] for path in weights}
    assert fetched == {"cut", "noise", "misfiled"}  # which only their content betrays


def test_the_size_is_told_before_a_download_and_what_it_left_out_afterwards(folder, hispec, tmp_path):
    files, home = list((folder / "org" / "sharded").glob("*.safetensors")), tmp_path / "home"
    size = f"{sum(file.stat().st_size for file in files) / 1000:.1f} kB"
    with serve(folder) as (endpoint, _):
        commands = [ask("org/sharded"), ask("org/sharded"), profile(tmp_path, "org/sharded", "v3")]
        first, again, unknown = hispec(endpoint, *commands, HF_HOME=str(home))
    lines = first[2].splitlines()
    assert lines[0] == f"downloading {len(files)} files, {size}"
    assert len(lines) > 2 and lines[-1] == f"downloaded {size} of {size}"
    assert again[2] == ""
    assert unknown[0] == 5 and "org/sharded has no revision v3" in unknown[2], unknown
    assert f"{endpoint}/org/sharded/tree/main" in unknown[2]
    shard = next(home.rglob("model-00003-*"))
    shard.resolve().unlink()
    shard.unlink()
    (answer,) = hispec("http://127.0.0.1:9", ask("org/sharded", "--offline"), HF_HOME=str(home))
    assert answer[0] == 5 and "its index names model-00003-of-" in answer[2] and "--offline" in answer[2], answer[2]


def test_a_disk_without_room_is_told_before_the_download(folder, hispec, tmp_path, monkeypatch):
    from hispec.errors import UnavailableError
    from hispec.models import download
    from hispec.models.checkpoint import Checkpoint

    monkeypatch.setattr(download, "disk_free", lambda _: 10**9)
    with pytest.raises(UnavailableError, match=r"has 140.0 GB, and 1.0 GB are free for") as caught:
        download.download([(Checkpoint("org/large"), "model.safetensors", 140 * 10**9)], print)
    assert "HF_HOME" in caught.value.hint
