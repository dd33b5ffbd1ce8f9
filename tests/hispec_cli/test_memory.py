"""Too little memory is reported before anything is loaded; if memory runs out later, no committed token is lost."""

import json

import pytest
import torch

from hispec import machine
from hispec.api import Engine
from hispec.errors import OutOfMemoryError, is_out_of_memory
from hispec.machine import Device
from hispec.models.fused_stack import FusedStack
from hispec.models.fused_weights import FusedWeights
from hispec.models.transformers_stack import TransformersStack
from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.fixture
def little_memory(monkeypatch):
    """A host with 1 MB free."""
    monkeypatch.setattr(machine, "host", lambda name="cpu": Device(name, "", 10**6, 10**9))


def loads(monkeypatch, cls):
    """Count how often weights of a kind are made."""
    made = []
    plain = cls.__init__
    monkeypatch.setattr(cls, "__init__", lambda self, *args: made.append(cls) or plain(self, *args))
    return made


def fail_after(monkeypatch, calls, error, stack=FusedStack):
    """Let the stack run out of memory after some spans, once."""
    plain, count = stack.run, iter(range(10**9))

    def run(self, *arguments, **options):
        if self.cache.lease is not None and next(count) == calls:  # not while it is made ready
            raise error
        return plain(self, *arguments, **options)

    monkeypatch.setattr(stack, "run", run)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "command", [("generate", QUESTION), ("bench", "--limit", "1"), ("calibrate",)], ids=lambda words: words[0]
)
def test_what_does_not_fit_is_refused_before_it_is_loaded(hispec, monkeypatch, command):
    made = loads(monkeypatch, FusedWeights)
    outcome = hispec(*command, "--device", "cpu")
    assert_message_and_hint(outcome, 5, "0.0010 GB are free: 0.0133 GB weights of builtin:tiny (target, ", "--force")
    assert not made


@pytest.mark.usefixtures("little_memory")
def test_force_tries_anyway(hispec):
    forced = hispec("generate", QUESTION, "--device", "cpu", "--force")
    assert (forced.code, forced.err) == (0, "")
    options = ("--limit", "1", "--warmup", "0", "--max-new-tokens", "4", "--arms", "hispec,hf")
    assert hispec("bench", *options, "--device", "cpu", "--force").code == 0


def test_the_arms_of_transformers_need_room_for_modules_of_their_own(hispec, monkeypatch):
    rooms = iter([10**9])  # enough for the engine, then nothing is left
    monkeypatch.setattr(machine, "host", lambda name="cpu": Device(name, "", next(rooms, 0), 10**9))
    made = loads(monkeypatch, TransformersStack)
    outcome = hispec("bench", "--limit", "1", "--arms", "hispec,hf", "--device", "cpu")
    assert outcome.code == 5 and "builtin:tiny for the arms of transformers needs" in outcome.err
    assert not made


@pytest.mark.usefixtures("little_memory")
def test_dummy_weights_need_as_much(hispec):
    outcome = hispec("generate", "x", "--profile", "layerskip-llama3.2-1b", "--load-format", "dummy", "--device", "cpu")
    assert_message_and_hint(outcome, 5, "2.47 GB weights of facebook/layerskip-llama3.2-1B", "--force")


def test_a_longer_prompt_needs_a_larger_cache(hispec, monkeypatch):
    free = 35_000_000
    monkeypatch.setattr(machine, "host", lambda name="cpu": Device(name, "", free, 10**9))
    assert hispec("generate", QUESTION, "--device", "cpu", "--max-new-tokens", "8").code == 0
    outcome = hispec("generate", "word " * 2000, "--device", "cpu", "--max-new-tokens", "8")
    assert outcome.code == 5 and "KV cache" in outcome.err


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_memory_that_ends_while_decoding_keeps_what_was_validated(hispec, monkeypatch, error):
    whole = json.loads(hispec("generate", QUESTION, "--format", "json").out)
    fail_after(monkeypatch, 30, error)
    outcome = hispec("generate", QUESTION, "--format", "json")
    assert outcome.code == 5
    message, hint = outcome.err.splitlines()
    record = json.loads(outcome.out)
    kept = len(record["token_ids"])
    assert 0 < kept < len(whole["token_ids"])
    assert record["token_ids"] == whole["token_ids"][:kept]
    assert record["finish_reason"] == "interrupted"
    assert f"out of memory after {kept} tokens" in message and "hispec doctor" in hint


def test_plain_output_and_the_trace_end_with_it_too(hispec, monkeypatch, tmp_path):
    whole = hispec("generate", QUESTION).out
    fail_after(monkeypatch, 30, ERRORS[1])
    outcome = hispec("generate", QUESTION, "--trace", tmp_path / "trace.jsonl")
    assert outcome.code == 5 and outcome.err.startswith("error: out of memory")
    assert outcome.out.strip() and whole.startswith(outcome.out.rstrip("\n"))
    last = json.loads((tmp_path / "trace.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["finish_reason"]) == ("finished", "interrupted")


def test_memory_that_ends_with_the_prompt_leaves_an_empty_answer(hispec, monkeypatch):
    fail_after(monkeypatch, 0, ERRORS[0])
    outcome = hispec("generate", QUESTION, "--format", "json")
    assert (outcome.code, json.loads(outcome.out)["token_ids"]) == (5, [])


def test_memory_that_ends_while_verifying_costs_no_answer(hispec, monkeypatch):
    calls, plain = [], FusedStack.run

    def run(self, *arguments, **options):
        calls.extend([1] * (self.cache.lease is not None))
        return plain(self, *arguments, **options)

    monkeypatch.setattr(FusedStack, "run", run)
    whole = hispec("generate", QUESTION)
    spans = len(calls)
    monkeypatch.setattr(FusedStack, "run", plain)
    fail_after(monkeypatch, spans + 3, ERRORS[1])
    outcome = hispec("generate", QUESTION, "--verify")
    assert (outcome.code, outcome.out) == (5, whole.out)
    assert "while verifying" in outcome.err


def test_the_engine_lives_on(monkeypatch):
    engine = Engine.from_profile("tiny")
    whole = engine.generate(QUESTION)
    fail_after(monkeypatch, 30, ERRORS[2])
    with pytest.raises(OutOfMemoryError) as ended:
        engine.generate(QUESTION)
    assert 0 < len(ended.value.generation.token_ids) < len(whole.token_ids)
    assert engine.generate(QUESTION).token_ids == whole.token_ids


@pytest.mark.parametrize("stack", ["fused", "transformers"])
def test_a_cache_that_could_not_grow_serves_a_shorter_answer(monkeypatch, stack):
    engine = Engine.from_profile("tiny", stack=stack)
    whole = engine.generate(QUESTION).token_ids
    fresh = Engine.from_profile("tiny", stack=stack)
    plain, count = torch.Tensor.new_zeros, iter(range(10**9))

    def new_zeros(self, *shape, **options):
        if next(count) == 5:
            raise ERRORS[1]
        return plain(self, *shape, **options)

    monkeypatch.setattr(torch.Tensor, "new_zeros", new_zeros)
    with pytest.raises(OutOfMemoryError):
        fresh.with_settings(max_new_tokens=900).generate(QUESTION)
    assert fresh.generate(QUESTION).token_ids == whole


def test_anywhere_else_it_is_no_bug(hispec, monkeypatch):
    def load(*_, **__):
        raise ERRORS[1]

    monkeypatch.setattr(Engine, "__init__", load)
    assert_message_and_hint(hispec("generate", QUESTION), 5, "the memory ran out", "hispec doctor")


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory is only text here"))
