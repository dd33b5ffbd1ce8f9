"""Models of every family, saved as their checkpoints are and loaded from disk: hispec writes what `generate` writes."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hispec.errors import UsageError
from hispec.models.checkpoint import Checkpoint
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from tests.support import PROMPT, decode_ids, hierarchy_of, random_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CHECKPOINTS = {
    "Llama 2": ("llama", {"num_key_value_heads": 4}, {"rope_theta": 1e4, "rope_scaling": None}),
    "Llama 3.1": (
        "llama",
        {},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}},
    ),
    "Llama 3.2": (
        "llama",
        {"tie_word_embeddings": True},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 32}},
    ),
    "CodeLlama": ("llama", {"num_key_value_heads": 4}, {"rope_theta": 1e6, "rope_scaling": None}),
    "Mistral": ("mistral", {"sliding_window": 64}, {"rope_theta": 1e4}),
    "Mistral 0.3": ("mistral", {"sliding_window": None}, {"rope_theta": 1e6}),
    "Qwen2": ("qwen2", {"tie_word_embeddings": True}, {"rope_theta": 1e6}),
    "Qwen2.5": ("qwen2", {}, {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    "Qwen3": ("qwen3", {"head_dim": 12, "tie_word_embeddings": True}, {"rope_theta": 1e6, "rope_scaling": None}),
}  # fmt: skip
"""Family, its configuration, and how the published files state the rotary embedding."""

SMALL = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_key_value_heads": 2, "num_experts_per_tok": 2}
OTHERS = {
    "gpt_neox": {},
    "phi3": {"num_key_value_heads": 2},
    "olmo2": {"num_key_value_heads": 2},
    "gemma": {"num_key_value_heads": 2, "head_dim": 8},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "head_dim": 8, "moe_intermediate_size": 16},
}
REFUSED = {
    "granite": ({"embedding_multiplier": 3.0}, "steps between its layers"),
    "cohere": ({"logit_scale": 0.1}, "steps between its layers"),
    "gemma3_text": ({"head_dim": 8}, "layers that are called otherwise"),
    "gpt2": ({"n_embd": 32, "n_layer": 4, "n_head": 4}, "no list of layers"),
    "mamba": ({}, "no attention through torch's"),
    "opt": ({}, "no list of layers"),
}


def load(folder, stack="auto"):
    return load_stack(Checkpoint(str(folder)), Placement(dtype="float32", stack=stack))


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request, tmp_path):
    """A sharded checkpoint whose config.json is laid out as on the hub."""
    family, changes, rotary = CHECKPOINTS[request.param]
    scaling = {"rope_type": "default"} | (rotary.get("rope_scaling") or {})
    scaling["rope_type"] = scaling.pop("type", scaling["rope_type"])
    parameters = scaling | {"rope_theta": rotary["rope_theta"]}
    random_model(family, **changes, rope_parameters=parameters).save_pretrained(tmp_path, max_shard_size="20KB")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config | rotary | {"torch_dtype": "float32"}))
    return tmp_path


def test_every_family_writes_what_generate_writes_on_both_stacks(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=50, do_sample=False)[0, len(PROMPT) :].tolist()
    assert len(set(expected)) > 2
    for kind in ("fused", "transformers"):
        stack = load(checkpoint, kind)
        assert stack.kind == kind and stack.context == Checkpoint(str(checkpoint)).config.context
        assert decode_ids(hierarchy_of(stack, 1, 2), (1, 2, 4), max_new_tokens=50) == expected


def save(family, changes, folder):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL, **changes)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


@pytest.mark.parametrize("family", OTHERS)
def test_other_decoders_write_what_generate_writes(family, tmp_path):
    save(family, OTHERS[family], tmp_path)
    stack = load(tmp_path)
    assert stack.kind == "transformers"
    expected = stack.model.generate(torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False)[0, len(PROMPT) :]
    assert decode_ids(hierarchy_of(stack, 1, 2), (1, 2, 4), max_new_tokens=40) == expected.tolist()
    with pytest.raises(UsageError, match=f"{tmp_path} does not run on the fused stack: it is a '{family}' model"):
        load(tmp_path, "fused")


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_split_into_spans_is_refused_by_name(family, tmp_path):
    changes, reason = REFUSED[family]
    save(family, changes, tmp_path)
    with pytest.raises(
        UsageError, match=f"is a '{family}' model, whose layers cannot be run in spans here: .*{reason}"
    ):
        load(tmp_path)
