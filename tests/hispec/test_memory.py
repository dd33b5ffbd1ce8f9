"""The memory estimate: parameters as published, bytes as loaded, and a refusal that shows its arithmetic."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hispec import machine, memory
from hispec.api import Engine
from hispec.errors import UnavailableError
from hispec.machine import Device
from hispec.memory import check_fits, check_profile, estimate
from hispec.models.checkpoint import Checkpoint
from hispec.models.checkpoint_files import SHIPPED_CONFIGS as CONFIGS
from hispec.models.config import parse_config, read_config
from hispec.models.dtypes import FLOATS
from hispec.models.fused_weights import FusedWeights
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from hispec.precedence import resolve_settings
from hispec.profile import Profile, TargetSection, list_profiles, load_profile
from hispec.settings import Settings
from tests.support import random_model

PUBLISHED = {
    "facebook--layerskip-llama2-7B": 6_738_415_616,
    "facebook--layerskip-llama2-13B": 13_015_864_320,
    "facebook--layerskip-llama2-70B": 68_976_648_192,
    "facebook--layerskip-llama3-8B": 8_030_261_248,
    "facebook--layerskip-llama3.2-1B": 1_235_814_400,
    "facebook--layerskip-codellama-7B": 6_738_546_688,
    "meta-llama--Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama--Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama--Llama-3.3-70B-Instruct": 70_553_706_496,
    "mistralai--Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen--Qwen3-0.6B": 751_632_384,
    "Qwen--Qwen3-1.7B": 2_031_739_904,
    "Qwen--Qwen3-4B": 4_022_468_096,
    "Qwen--Qwen3-8B": 8_190_735_360,
    "Qwen--Qwen3-14B": 14_768_307_200,
    "Qwen--Qwen3-32B": 32_762_123_264,
    "HuggingFaceTB--SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB--SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB--SmolLM2-1.7B-Instruct": 1_711_376_384,
}
"""Parameters of these architectures as the hub counts them in their safetensors."""
STORED_TWICE = ("Qwen--Qwen3-0.6B", "Qwen--Qwen3-1.7B")
"""Models whose files contain the head too, although it is the embedding."""
ROUNDED = {"facebook--layerskip-codellama-34B": 33.7, "princeton-nlp--Sheared-LLaMA-2.7B": 2.7}
"""Billions, where the exact number is not at hand."""


def shape_of(name):
    return read_config(json.loads((CONFIGS / f"{name}.json").read_text()))


def need_of(profile, **settings):
    return estimate(profile, resolve_settings(settings, profile)[0])


def test_every_shipped_configuration_is_known():
    assert {path.stem for path in CONFIGS.glob("*.json")} == PUBLISHED.keys() | ROUNDED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones_exactly(name):
    shape = shape_of(name)
    again = shape.vocab_size * shape.hidden_size if name in STORED_TWICE else 0
    assert shape.parameters + again == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_agree_with_the_rounded_ones(name):
    assert shape_of(name).parameters / 1e9 == pytest.approx(ROUNDED[name], abs=0.05)


def test_llama_2_70b_takes_137_9_gigabytes():
    need = need_of(load_profile("llama-3b-70b"))
    target = next(model for model in need.models if model.role == "target")
    assert target.weights / 1e9 == pytest.approx(137.95, abs=0.01)
    assert need.total > target.weights + sum(model.weights for model in need.models if model.role == "draft")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family_is_counted_as_it_is_allocated(family, tied):
    config = random_model(family, tie_word_embeddings=tied).config
    with torch.device("meta"):
        weights = FusedWeights(parse_config(config.to_dict(), config), torch.bfloat16, torch.device("meta"))
    shape = read_config(config.to_dict())
    assert shape.parameters == sum(part.numel() for part in weights.parts.values())
    assert shape.weights("bfloat16") == 2 * shape.parameters


def test_biases_are_counted():
    config = random_model("llama", attention_bias=True, mlp_bias=True).config
    weights = FusedWeights(parse_config(config.to_dict(), config), torch.float32, torch.device("meta"))
    assert read_config(config.to_dict()).parameters == sum(part.numel() for part in weights.parts.values())


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("bfloat16", 2)])
def test_weights_and_cache_are_those_of_a_loaded_engine(dtype, item):
    engine = Engine.from_profile("tiny", dtype=dtype, max_new_tokens=300, stack="fused")
    (need,) = estimate(engine.profile, engine.settings, prompt_tokens=40).models
    (stack,) = engine.stacks.values()
    assert need.source == "safetensors"
    assert need.weights == sum(part.numel() for part in stack.parts.values()) * item
    stack.reserve(340)
    assert need.kv_cache == sum(layer.numel() for layer in stack.cache.layers) * item


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("inner", [64, 4096], ids=["small", "large"])
def test_a_tied_head_is_counted_twice_only_where_it_is_packed(tmp_path, inner, dtype):
    sizes = {}
    for tied in (False, True):
        folder = tmp_path / str(tied)
        random_model("llama", tie_word_embeddings=tied, intermediate_size=inner, vocab=1000).save_pretrained(folder)
        profile = Profile(name="made-up", target=TargetSection(model=str(folder)))
        (sizes[tied],) = need_of(profile, dtype=dtype, device="cpu").models
    stack = load_stack(Checkpoint(str(folder)), Placement(dtype=dtype))
    stack.prepare("free")
    copied = 1000 * 32 * FLOATS[dtype] // 8 if stack._weights.packed else 0
    assert sizes[True].workspace - sizes[False].workspace == copied


def test_the_cache_grows_with_the_context_and_ends_with_it():
    profile = load_profile("layerskip-llama2-70b")
    settings = Settings(max_new_tokens=256)
    by_prompt = {tokens: estimate(profile, settings, prompt_tokens=tokens) for tokens in (256, 1792, 10**6)}
    sizes = {tokens: need.models[0].kv_cache for tokens, need in by_prompt.items()}
    # Grouped queries: 2 x 80 layers x 8 heads x 128 numbers x 2 bytes = 327,680 bytes a position.
    assert sizes == {256: 512 * 327_680, 1792: 2048 * 327_680, 10**6: 4096 * 327_680}


def test_modes_take_only_the_models_that_they_run():
    profile = load_profile("llama-3b-8b-70b")
    roles = {mode: [m.role for m in need_of(profile, mode=mode).models] for mode in ("hispec", "autoregressive")}
    assert roles == {"hispec": ["target", "draft", "intermediate"], "autoregressive": ["target"]}


def test_quantized_weights_are_smaller_but_embeddings_are_not():
    profile = load_profile("layerskip-llama2-70b")
    shape = shape_of("facebook--layerskip-llama2-70B")
    sizes = {kind: need_of(profile, quantization=kind).models[0].weights for kind in ("4bit", "8bit")}
    rest = 2 * (shape.layer_vectors + shape.tables)
    assert sizes == {"4bit": shape.layer_matrices * 9 // 16 + rest, "8bit": shape.layer_matrices + rest}


def test_a_quantized_checkpoint_is_counted_as_it_is_stored(tmp_path):
    values = json.loads((CONFIGS / "facebook--layerskip-llama2-7B.json").read_text())
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(values))
    profile = Profile(name="quantized", target=TargetSection(model=str(tmp_path)))
    shape = read_config(values)
    (need,) = need_of(profile).models
    assert need.quantization == "stored"
    assert need.weights == int(shape.layer_matrices * (4 + 20 / 128) + 16 * (shape.layer_vectors + shape.tables)) // 8
    save_file(
        {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 6, dtype=torch.int32)}, tmp_path / "model.safetensors"
    )
    (need,) = need_of(profile).models
    assert (need.weights, need.source) == (8 * 6 * 4, "safetensors")


def test_shards_are_read_by_their_headers_and_a_missing_one_leaves_the_formula(tmp_path):
    model = random_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    profile = Profile(name="sharded", target=TargetSection(model=str(tmp_path)))
    (need,) = need_of(profile).models
    assert (need.source, need.download) == ("safetensors", 0)
    assert need.weights == sum(part.numel() * 4 for part in model.parameters())
    shards[0].unlink()
    assert Checkpoint(profile.target.model).tensors_here() is None
    (formula,) = need_of(profile).models
    assert (formula.source, formula.weights) == ("config.json", need.weights)


def test_a_damaged_header_is_no_reason_to_fail_here(tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert Checkpoint(str(tmp_path)).tensors_here() is None


def test_a_model_without_a_configuration_is_unknown(tmp_path):
    assert need_of(Profile(name="nothing", target=TargetSection(model=str(tmp_path)))) is None
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    assert need_of(Profile(name="nothing", target=TargetSection(model=str(tmp_path)))) is None


def test_a_foreign_family_is_counted_by_its_headers_alone(tmp_path):
    values = random_model("llama").config.to_dict() | {"model_type": "some_decoder"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    profile = Profile(name="foreign", target=TargetSection(model=str(tmp_path)))
    assert need_of(profile) is None
    save_file({"layers.0.weight": torch.zeros(7, 5)}, tmp_path / "model.safetensors")
    assert need_of(profile).models[0].weights == 7 * 5 * 4


def test_what_one_device_cannot_hold_may_fit_all_of_them(monkeypatch):
    places = [Device("cuda:0", "", 80 * 10**9, 0), Device("cuda:1", "", 80 * 10**9, 0), Device("cpu", "", 10**9, 0)]
    monkeypatch.setattr(machine, "devices", lambda: places)
    monkeypatch.setattr(memory, "device_named", lambda name: places[0])
    profile = load_profile("layerskip-llama2-70b")
    whole, spread, quantized = (
        resolve_settings(options, profile)[0] for options in ({}, {"device_map": "auto"}, {"quantization": "4bit"})
    )
    with pytest.raises(UnavailableError, match=r"on cuda:0, and 80\.00 GB are free"):
        check_profile(profile, whole)
    check_profile(profile, spread)
    check_profile(profile, quantized)
    places.pop(1)
    with pytest.raises(UnavailableError, match=r"on cuda:0 \+ cpu, and 81\.00 GB are free"):
        check_profile(profile, spread)


def test_the_refusal_shows_its_arithmetic():
    need = need_of(load_profile("llama-3b-70b"))
    check_fits(need, Device("cuda:0", "", need.total, need.total), "llama-3b-70b")
    with pytest.raises(UnavailableError) as refusal:
        check_fits(need, Device("cuda:0", "", need.total - 1, need.total), "llama-3b-70b")
    assert refusal.value.exit_code == 5
    assert "137.95" in refusal.value.message and "68.977 billion x 2 bytes, bfloat16" in refusal.value.message
    assert "--force" in refusal.value.hint
    assert sum(size for size, _ in need.lines()) == need.total


def test_every_shipped_profile_is_estimated_without_the_network():
    assert all(need_of(load_profile(name)) is not None for name, _ in list_profiles())


def test_the_settings_quantization_counts_where_no_other_is_given():
    profile = load_profile("layerskip-llama2-7b")
    whole, quarter = need_of(profile), need_of(profile, quantization="4bit")
    assert quarter.models[0].quantization == "4bit" and quarter.models[0].weights < whole.models[0].weights / 3


def test_what_the_modules_of_transformers_run_has_their_workspace():
    profile = load_profile("layerskip-llama3-8b")
    (fused,) = need_of(profile, dtype="float16").models
    (modules,) = need_of(profile, dtype="float16", stack="transformers").models
    (quantized,) = need_of(profile, dtype="float16", quantization="8bit").models
    (spread,) = need_of(profile, dtype="float16", device_map="auto").models
    assert quantized.workspace == modules.workspace > fused.workspace == spread.workspace


def test_weights_quantized_in_a_way_that_is_not_known_are_not_taken_for_the_fused_stack(tmp_path):
    values = json.loads((CONFIGS / "facebook--layerskip-llama3.2-1B.json").read_text())
    workspaces = []
    for stack, changes in (("transformers", {}), ("auto", {"quantization_config": {"quant_method": "new"}})):
        (tmp_path / "config.json").write_text(json.dumps(values | changes))
        profile = Profile(name="made-up", target=TargetSection(model=str(tmp_path)))
        (need,) = need_of(profile, stack=stack, dtype="float16").models
        workspaces.append(need.workspace)
    assert len(set(workspaces)) == 1


def test_a_cache_of_fixed_shapes_is_estimated_as_it_will_be():
    engine = Engine.from_profile("tiny", graphs="on", stack="fused", max_new_tokens=200)
    need = estimate(engine.profile, engine.settings, prompt_tokens=40)
    engine.stacks["builtin:tiny"].reserve(240)
    assert need.positions == engine.stacks["builtin:tiny"].cache.positions == 512
