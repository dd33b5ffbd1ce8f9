"""Models of random weights: no download, all of the size, finite and varied logits, and no second copy."""

import json
import subprocess
import sys

import pytest
import torch

from hispec.api import Engine
from hispec.bench.arms import make_arms
from hispec.errors import UsageError
from hispec.models.checkpoint import Checkpoint
from hispec.models.checkpoint_files import SHIPPED_CONFIGS as CONFIGS
from hispec.models.dummy import dummy_tokenizer
from hispec.models.fused_stack import FusedStack
from hispec.models.loading import draw_modules, draw_stack
from hispec.models.placement import Placement
from hispec.profile import profile_for_model
from tests.support import random_model

PROMPT = "How many apples are in the basket?"
PARAMETERS = {
    "facebook/layerskip-llama3.2-1B": 1.24,
    "facebook/layerskip-llama2-7B": 6.74,
    "facebook/layerskip-llama2-13B": 13.02,
    "facebook/layerskip-llama2-70B": 68.98,
    "facebook/layerskip-llama3-8B": 8.03,
    "facebook/layerskip-codellama-7B": 6.74,
    "facebook/layerskip-codellama-34B": 33.74,
    "princeton-nlp/Sheared-LLaMA-2.7B": 2.70,
    "meta-llama/Llama-3.2-3B-Instruct": 3.21,
    "meta-llama/Llama-3.1-8B-Instruct": 8.03,
    "meta-llama/Llama-3.3-70B-Instruct": 70.55,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.25,
    "Qwen/Qwen3-0.6B": 0.60,
    "Qwen/Qwen3-1.7B": 1.72,
    "Qwen/Qwen3-4B": 4.02,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-14B": 14.77,
    "Qwen/Qwen3-32B": 32.76,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.135,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 0.362,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.71,
}
"""Billions, as their publishers count them."""


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3"])
def folder(request, tmp_path_factory):
    """A folder with nothing but a configuration."""
    path = tmp_path_factory.mktemp(request.param)
    random_model(
        request.param, layers=8, vocab=600, hidden_size=64, intermediate_size=96, head_dim=16
    ).config.save_pretrained(path)
    return path


def dummy(folder, **options):
    profile = profile_for_model(str(folder), 8, 1, 3)
    return Engine.from_profile(profile, load_format="dummy", dtype="float32", max_new_tokens=40, **options)


@pytest.mark.parametrize("name", PARAMETERS)
def test_shipped_configs_have_the_published_number_of_parameters(name):
    config = Checkpoint(name, dummy=True).config
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    layer = config.hidden_size * (heads * config.head_size + 3 * config.intermediate_size)
    tables = (1 if config.tied else 2) * config.vocab_size * config.hidden_size
    assert (config.num_layers * layer + tables) / 1e9 == pytest.approx(
        PARAMETERS[name], abs=min(0.006, 0.02 * PARAMETERS[name])
    )


def test_every_shipped_config_is_among_them():
    assert {path.stem.replace("--", "/") for path in CONFIGS.glob("*.json")} == PARAMETERS.keys()


@pytest.mark.parametrize("stack", ["fused", "transformers"])
def test_hispec_writes_what_the_model_alone_writes(folder, stack):
    engine = dummy(folder, stack=stack)
    assert engine.stacks[str(folder)].kind == stack
    answer = engine.generate(PROMPT)
    alone = engine.with_settings(mode="autoregressive").generate(PROMPT)
    assert answer.token_ids == alone.token_ids
    assert len(set(answer.token_ids)) > 20
    assert answer.environment["weights"] == "dummy"


@pytest.mark.parametrize("tied", [False, True])
def test_the_arms_of_transformers_run_on_the_same_weights(folder, tmp_path, tied):
    values = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(values))
    engine = dummy(tmp_path)
    fused = engine.hierarchy.stack_of(-1)
    own, *theirs = make_arms(["autoregressive", "hf", "hf-early-exit", "prompt-lookup"], engine)
    assert isinstance(fused, FusedStack)
    for name, parameter in draw_modules(Checkpoint(str(tmp_path), dummy=True), fused).named_parameters():
        assert torch.equal(parameter, fused.parts[name])
    ids = list(PROMPT.encode())
    expected = own.answer(ids, 40, (), 0).token_ids
    for arm in theirs:
        assert arm.answer(ids, 40, (), 0).token_ids == expected, arm.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_finite_and_varied_in_half_precision(folder, dtype):
    name = str(dtype).removeprefix("torch.")
    stack, parts = draw_stack(Checkpoint(str(folder), dummy=True), Placement(dtype=name))
    assert {part.dtype for part in parts.values()} == {dtype}
    stack.reserve(64)
    with torch.inference_mode():
        logits = stack.head(stack.run(stack.embed(list(range(64))), 0, 8, 0)).float()
    assert logits.isfinite().all()
    assert 0.3 < logits.std() < 3
    assert logits.argmax(-1).unique().numel() > 30


def test_the_same_weights_every_time(folder):
    assert dummy(folder).generate(PROMPT).token_ids == dummy(folder).generate(PROMPT).token_ids


def test_bytes_stand_in_for_a_tokenizer():
    tokenizer = dummy_tokenizer(300)
    assert len(tokenizer) == 300
    assert tokenizer.decode(tokenizer("Grüße!")["input_ids"]) == "Grüße!"
    assert tokenizer.decode([299, 256]) == " 299 256"
    with pytest.raises(UsageError, match="255 tokens"):
        dummy_tokenizer(255)


BUILD = """
from hispec.models.checkpoint import Checkpoint
from hispec.models.linear import has_float16_kernel
from hispec.models.loading import draw_stack
from hispec.models.placement import Placement
import json, resource, sys, torch
from pathlib import Path
def resident(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
torch.set_num_threads(1)
placement = Placement(dtype=sys.argv[3], stack=sys.argv[4])
has_float16_kernel()
draw_stack(Checkpoint(sys.argv[2], dummy=True), placement)  # libraries and their caches
before = resident("VmRSS")
stack, parts = draw_stack(Checkpoint(sys.argv[1], dummy=True), placement)
weights = sum(part.numel() * part.element_size() for part in parts.values())
print(json.dumps([weights, resident("VmHWM") - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize(
    ("dtype", "stack"), [("float32", "fused"), ("bfloat16", "fused"), ("bfloat16", "transformers")]
)
def test_building_takes_little_more_memory_than_the_weights(tmp_path, dtype, stack):
    for name, sizes in (("small", {}), ("large", {"hidden_size": 512, "intermediate_size": 1024, "vocab": 4000})):
        model = random_model("llama", **{"layers": 2, "vocab": 300} | sizes)
        values = model.config.to_dict() | ({"num_hidden_layers": 12} if name == "large" else {})
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    command = [sys.executable, "-c", BUILD, str(tmp_path / "large"), str(tmp_path / "small"), dtype, stack]
    weights, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert weights > 30e6
    assert peak < 1.1 * weights


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_quantized_random_weights_are_drawn_tensor_by_tensor(folder, quantization):
    profile = profile_for_model(str(folder), 8, 1, 2)
    options = {"load_format": "dummy", "quantization": quantization, "max_new_tokens": 12}
    engine = Engine.from_profile(profile, **options)
    assert engine.environment["weights"] == "dummy" and engine.environment["quantization"] == quantization
    assert engine.hierarchy.stack_of(-1).quantization == quantization
    written = engine.decoder().token_ids([3, 1, 4], 12)
    assert written == engine.with_settings(mode="autoregressive").decoder().token_ids([3, 1, 4], 12)
    assert written == Engine.from_profile(profile, **options).decoder().token_ids([3, 1, 4], 12)
    with pytest.raises(UsageError, match="changes weights, which quantized ones do not allow"):
        Engine.from_profile(profile, **options, dummy_agreement="0.5,0.7")
