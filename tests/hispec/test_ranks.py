"""Two processes that share every matrix decode what one does, and decide everything alike."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from transformers import AutoTokenizer

from hispec import Engine
from hispec_cli.app import run
from tests.support import random_model

PROMPT = "Ben has 12 cards and Mei has 5."
SAMPLED = {"temperature": 1.0, "seed": 7, "max_new_tokens": 20}
PROGRAM = """
import json, sys
from pathlib import Path

import torch
from torch import distributed

from hispec import Engine
from hispec.decoding.engine import StopCriteria, decode
from hispec.policies.static import StaticPolicy
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Committed
from hispec.ranks import SharedPolicy
from hispec_cli.app import run

profile, folder, prompt, sampled = sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
engine = Engine.from_profile(profile, tensor_parallel=True, max_new_tokens=20)
rank, stack = engine.ranks.rank, engine.hierarchy.stack_of(-1)
found = {"world": engine.environment["tensor_parallel"]}
found["held"] = [stack.kind, stack.config.num_kv_heads]
for mode in ("hispec", "single-layer", "autoregressive"):
    own = engine.with_settings(mode=mode)
    found[mode] = [own.generate(prompt).token_ids, own.with_settings(**sampled).generate(prompt).token_ids]
found["greedy"], found["sampled"] = found["hispec"]
adaptive = engine.with_settings(policy="adaptive")
found["adaptive"] = [adaptive.generate(prompt).token_ids, adaptive.with_settings(**sampled).generate(prompt).token_ids]
unseeded = engine.with_settings(**sampled | {"seed": None}).generate(prompt)
found["unseeded"] = [unseeded.seed, unseeded.token_ids]

stack.reserve(20)
logits = stack.head(stack.run(stack.embed(list(range(20))), 0, stack.num_layers, 0))
found["logits"] = [logits.double().sum().item(), logits.double().square().sum().item()]

events = []
for event in engine.stream(prompt):
    events.append(event)
    if len(events) == (9 if rank == 0 else 3):  # what the others want does not count
        engine.interrupt()
found["interrupted"] = [events[-1].finish_reason, events[-1].result.token_ids, len(events)]

pickled, broadcast = [], distributed.broadcast_object_list
distributed.broadcast_object_list = lambda *values, **options: pickled.append(values) or broadcast(*values, **options)
state = DecodingState(engine.hierarchy, list(range(3, 12)), 60)
policy = SharedPolicy(StaticPolicy((1, 2, 4) if rank == 0 else (1, 3, 7)), engine.ranks)
steps = list(decode(state, policy, Sampler(Sampling()), StopCriteria(20)))
found["pickled"] = len(pickled)
found["policy"] = [type(step).__name__ for step in steps]
found["policy ids"] = [token for step in steps if isinstance(step, Committed) for token in step.token_ids]

mixed = Engine.from_profile(profile.replace("profile", "mixed"), tensor_parallel=True, max_new_tokens=20)
found["mixed"] = [mixed.generate(prompt).token_ids, mixed.with_settings(**sampled).generate(prompt).token_ids]
found["heads of a draft"] = mixed.hierarchy.stack_of(0).config.num_kv_heads

modules = Engine.from_profile(profile, tensor_parallel=True, stack="transformers", max_new_tokens=20)
keys = modules.hierarchy.stack_of(-1).model.model.layers[0].self_attn.k_proj.weight
found["modules"] = [modules.generate(prompt).token_ids, list((keys.to_local() if hasattr(keys, "to_local") else keys).shape)]

(folder / f"rank{rank}.json").write_text(json.dumps(found))
distributed.barrier()
different = [] if rank == 0 else ["Another prompt, which does not count"]
found["code"] = run(["generate", *different, "--profile", profile, "--tensor-parallel", "--format", "json", "--max-new-tokens", "20"])
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory, shipped_model):
    """A random model with grouped keys, read at three depths."""
    folder = tmp_path_factory.mktemp("ranks")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    random_model(vocab=len(tokenizer) + 1).save_pretrained(folder / "model")
    random_model(seed=1, layers=1, vocab=len(tokenizer) + 1, num_key_value_heads=1).save_pretrained(folder / "small")
    for name in ("model", "small"):
        tokenizer.save_pretrained(folder / name)
    levels = {"draft": {"exit_layer": 1}, "intermediate": {"exit_layer": 2}}
    target = {"model": str(folder / "model"), "dtype": "float32"}
    (folder / "profile.yaml").write_text(yaml.safe_dump({"target": target, **levels}))
    levels["draft"] = {"model": str(folder / "small")}
    (folder / "mixed.yaml").write_text(yaml.safe_dump({"target": target, **levels}))
    return folder / "profile.yaml"


@pytest.fixture(scope="module")
def ranks(profile):
    """The results of each of two ranks, and their output."""
    (profile.parent / "program.py").write_text(PROGRAM)
    program = [str(profile.parent / "program.py"), str(profile), str(profile.parent), PROMPT, json.dumps(SAMPLED)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        input=PROMPT.encode(),
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = [json.loads((profile.parent / f"rank{rank}.json").read_text()) for rank in range(2)]
    return *found, done.stdout.decode()


def test_two_ranks_write_the_ids_of_one_process(ranks, profile):
    one = Engine.from_profile(str(profile), max_new_tokens=20, mode="autoregressive")
    greedy, sampled = (one.with_settings(**settings).generate(PROMPT).token_ids for settings in ({}, SAMPLED))
    assert greedy != sampled
    for found in ranks[:2]:
        assert (found["world"], found["held"]) == (2, ["fused", 1])  # one of two key heads each
        for mode in ("hispec", "single-layer", "autoregressive", "adaptive", "mixed"):
            assert found[mode] == [greedy, sampled], mode
        assert found["heads of a draft"] == 1  # which two ranks cannot share: each has it whole


def test_the_modules_of_transformers_are_shared_where_they_are_asked_for(ranks):
    for found in ranks[:2]:
        assert found["modules"] == [found["greedy"], [8, 32]]


def test_ranks_decide_alike_whatever_each_would_have_decided(ranks):
    first, second, _ = ranks
    assert first == second
    assert first["pickled"] == 0 < len(first["policy"])  # steps are numbers, in messages of fixed size
    assert first["interrupted"][0] == "interrupted" and 0 < len(first["interrupted"][1]) < 20
    assert first["unseeded"][1] != first["sampled"]


def test_a_signal_that_comes_while_ranks_share_whether_to_stop_counts_at_the_next_step():
    engine = Engine.from_profile("tiny")
    heard = []

    class Signalled:
        """The first of two ranks, which a signal interrupts after it has said that it goes on."""

        def share_numbers(self, *numbers):
            engine.interrupt()
            heard.append(numbers)
            return list(numbers)

    engine.ranks = Signalled()
    assert [engine._is_interrupted() for _ in range(2)] == [False, True]
    assert heard == [(False,), (True,)]


def test_only_the_first_rank_reads_and_prints(ranks):
    first, _, printed = ranks
    (line,) = printed.splitlines()
    record = json.loads(line)
    assert (record["prompt"], record["token_ids"]) == (PROMPT, first["greedy"])


@pytest.mark.parametrize(
    ("world", "arguments", "message", "hint"),
    [
        (2, (), "torchrun started several processes", "--tensor-parallel"),
        (1, ("--tensor-parallel",), "--tensor-parallel needs one process for each device", "torchrun"),
        (3, ("--tensor-parallel",), "3 processes cannot share the 2 key/value heads", "divide them: 2"),
        (2, ("--tensor-parallel", "--device-map", "auto"), "--device-map", "leave out"),
        (2, ("--tensor-parallel", "--quantization", "4bit"), "--quantization 4bit or 8bit", "choose int4 or int8"),
    ],
)
def test_what_ranks_cannot_do_is_told(monkeypatch, capsys, profile, world, arguments, message, hint):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": world, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    assert run(["generate", PROMPT, "--profile", str(profile), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and message in lines[0] and hint in lines[1], lines


@pytest.mark.parametrize("command", ["bench", "chat"])
def test_commands_that_cannot_share_their_work_say_so(capsys, command):
    assert run([command, "--tensor-parallel"]) == 2
    assert "--tensor-parallel is for hispec generate alone" in capsys.readouterr().err
