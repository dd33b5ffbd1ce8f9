"""Reading a checkpoint: its dtype, unused tensors, its tokenizer, and agreement with `transformers`."""

import re
import warnings
from inspect import getfile, getsource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, ByT5Tokenizer, masking_utils
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hispec.errors import UnavailableError, UsageError
from hispec.models.checkpoint import Checkpoint
from hispec.models.config import DIRECT
from hispec.models.families import FAMILIES
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from hispec.models.tokenizer import load_tokenizer
from hispec.models.transformers_stack import TransformersStack
from hispec.models.values import READ, read_by
from tests.support import random_model

STACKS = ("fused", "transformers")


@pytest.fixture
def folder(tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    return tmp_path


def load(folder, stack, dtype="float32"):
    return load_stack(Checkpoint(str(folder)), Placement(dtype=dtype, stack=stack))


def set_tensors(folder, tensors):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("stack", STACKS)
def test_the_dtype_is_that_of_the_first_tensor_that_is_computed_with(stack, folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": null'))
    tensors = load_file(folder / "model.safetensors")
    tensors = {
        name: part if name in ("lm_head.weight", "model.norm.weight") else part.half() for name, part in tensors.items()
    }
    set_tensors(folder, tensors | {"a.count": torch.tensor([1]), "b.scale": torch.ones(2, dtype=torch.float8_e4m3fn)})
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype
    with pytest.warns(UserWarning, match=f"{folder} has no use for a.count and 1 more of its checkpoint"):
        assert load(folder, stack, "auto").dtype == expected


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("extra", ["self_attn.q_norm.weight", "self_attn.q_proj.weight_scale", "mlp.up_proj.bias"])
def test_a_tensor_that_nothing_uses_is_told_of(extra, stack, folder):
    tensors = load_file(folder / "model.safetensors")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    set_tensors(folder, tensors | old)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(folder, stack)
    set_tensors(folder, tensors | old | {f"model.layers.1.{extra}": torch.ones(8)})
    with pytest.warns(UserWarning, match=f"{folder} has no use for model.layers.1.{extra} of its checkpoint"):
        load(folder, stack)


def test_a_model_that_looks_ahead_is_refused():
    with pytest.raises(UsageError, match="is_causal is false"):
        TransformersStack(random_model("llama", is_causal=False), "some model")


def test_a_tokenizer_without_a_tokenizer_json_is_refused_by_its_class(folder):
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(UsageError, match=r"is a ByT5Tokenizer, which has no tokenizer\.json"):
        load_tokenizer(Checkpoint(str(folder)))


def test_no_tokenizer_at_all_is_told(folder):
    with pytest.raises(UnavailableError, match=r"has no tokenizer"):
        load_tokenizer(Checkpoint(str(folder)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_transformers_computes_with_is_known_here(family):
    """A release that reads one more is noticed by its source."""
    config = next(config for config in MODEL_FOR_CAUSAL_LM_MAPPING if config.model_type == family)
    source = Path(getfile(MODEL_FOR_CAUSAL_LM_MAPPING[config])).read_text(encoding="utf-8")
    source += getsource(masking_utils.create_causal_mask) + getsource(masking_utils.create_sliding_window_causal_mask)
    read = {*re.findall(r"config\.(\w+)", source), *re.findall(r'config, "(\w+)"', source)}
    assert len(read) > 15
    assert read - DIRECT - READ.keys() - read_by(FAMILIES[family]).keys() == {"_attn_implementation"}
