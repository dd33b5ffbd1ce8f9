"""Options of a checkpoint: both stacks compute what `transformers` computes, or name the key that they refuse."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Olmo2ForCausalLM

from hispec.errors import UnavailableError, UsageError
from hispec.models.checkpoint import Checkpoint
from hispec.models.config import read_config
from hispec.models.families import FAMILIES
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from hispec.models.transformers_stack import TransformersStack
from tests.support import PROMPT, decode_ids, greedy_by_hand, hierarchy_of, random_model

IDS = [(5 * place + 3) % 24 for place in range(20)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHIFTED = {"rope_type": "default", "rope_theta": 50.0}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def saved(folder, family, changes, edits):
    """A checkpoint with biases of its own, and a config.json with some keys set afterwards; returns its values."""
    model = random_model(family, **changes)
    for name, part in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(part, std=0.5)
    model.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text()) | edits
    path.write_text(json.dumps(values))
    return values


def set_tensors(folder, **changes):
    """Add tensors to a checkpoint, replace them, or with None take them away."""
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: part for name, part in tensors.items() if part is not None}, path, metadata={"format": "pt"})


def load(folder, stack="auto"):
    return load_stack(Checkpoint(str(folder)), Placement(dtype="float32", stack=stack))


def assert_logits_equal(folder, kind="fused"):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0]
        for stack in (load(folder), load(folder, "transformers")):
            stack.reserve(len(IDS))
            logits = stack.head(stack.run(stack.embed(IDS), 0, stack.num_layers, 0))
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)
    assert load(folder).kind == kind


ODD = {
    **{f"{family}: yarn beside its parameters": (family, {}, {"rope_scaling": YARN}) for family in FAMILIES},
    "linear beside parameters": ("llama", {}, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama3 beside parameters": ("llama", {}, {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "default beside parameters": ("qwen3", {}, {"rope_scaling": SHIFTED}),
    "the base of what scaling replaces": ("llama", {"rope_parameters": SHIFTED}, {"rope_scaling": YARN}),
    "two bases": ("mistral", {"rope_parameters": SHIFTED}, {"rope_theta": 7.0}),
    "a base alone": ("qwen2", {}, {"rope_parameters": None, "rope_theta": 7.0}),
    "no base": ("llama", {}, {"rope_parameters": None}),
    "an original length outside": ("llama", {}, {"rope_scaling": YARN, "original_max_position_embeddings": 16}),
    "yarn without a factor": ("llama", {}, {"rope_scaling": {**YARN, "factor": None}}),
    "yarn with scales": ("qwen2", {}, {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "yarn with a factor of attention": ("qwen2", {}, {"rope_scaling": {**YARN, "attention_factor": 2.0}}),
    "a part of each head, unscaled": ("llama", {}, {"partial_rotary_factor": 0.5}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}, {}),
    "biases that are denied": ("llama", {"attention_bias": True, "mlp_bias": True}, {"attention_bias": False}),
    "biases that the family has not": ("mistral", {}, {"attention_bias": True, "mlp_bias": True}),
    "fewer layers than stored": ("llama", {}, {"num_hidden_layers": 2}),
    "a large epsilon": ("qwen3", {"rms_norm_eps": 0.3}, {}),
    "heads of another size": ("qwen2", {"head_dim": 12}, {}),
    "a cap that the family has not": ("llama", {}, {"final_logit_softcapping": 1.0}),
    "scales that the family has not": ("llama", {}, {"attention_multiplier": 2.0, "logits_scaling": 3.0}),
    "slices of pretraining": ("llama", {}, {"pretraining_tp": 2}),
    "a window that llama's layers leave out": ("llama", {}, {"layer_types": ["full_attention"] * 4, "sliding_window": 4}),
    "a window that no layer uses": ("qwen2", {}, {"use_sliding_window": True, "sliding_window": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_both_stacks_read_what_transformers_reads(name, tmp_path):
    saved(tmp_path, *ODD[name])
    assert_logits_equal(tmp_path)


def test_an_activation_of_another_kind_is_left_to_the_modules_of_transformers(tmp_path):
    saved(tmp_path, "llama", {}, {"hidden_act": "gelu"})
    assert_logits_equal(tmp_path, "transformers")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_checkpoint_with_a_head_of_its_own_uses_it(family, tmp_path):
    saved(tmp_path, family, {}, {"tie_word_embeddings": True})
    assert_logits_equal(tmp_path)
    stack = load(tmp_path)
    expected = greedy_by_hand(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), 20)
    assert decode_ids(hierarchy_of(stack, 1, 2), (1, 2, 4), max_new_tokens=20, prompt=PROMPT) == expected


def test_a_head_that_repeats_the_embedding_is_held_once(tmp_path):
    saved(tmp_path, "llama", {"tie_word_embeddings": True}, {})
    embedding = load_file(tmp_path / "model.safetensors")[EMBEDDING]
    set_tensors(tmp_path, **{HEAD: embedding.clone()})
    assert_logits_equal(tmp_path)
    assert HEAD not in load(tmp_path).parts
    last = embedding.clone()
    last[-1, -1] += 1
    set_tensors(tmp_path, **{HEAD: last})
    assert_logits_equal(tmp_path)
    assert HEAD in load(tmp_path).parts


def test_a_tied_checkpoint_with_its_head_alone_is_left_to_the_modules_of_transformers(tmp_path):
    saved(tmp_path, "llama", {}, {"tie_word_embeddings": True})
    set_tensors(tmp_path, **{EMBEDDING: None})
    assert_logits_equal(tmp_path, "transformers")


def test_tensors_that_no_module_has_are_left_out(tmp_path):
    saved(tmp_path, "llama", {}, {})
    unused = "model.layers.0.self_attn.q_proj.bias", "model.layers.9.mlp.up_proj.weight"
    set_tensors(tmp_path, **{name: torch.ones(32) for name in unused})
    assert_logits_equal(tmp_path)


def test_what_the_shards_hold_counts_and_not_what_their_index_says(tmp_path):
    model = random_model("llama")
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    names = listed["weight_map"]
    other = next(file for file in names.values() if file != names[EMBEDDING])
    del names[HEAD]
    names[EMBEDDING] = other
    index.write_text(json.dumps(listed))
    assert_logits_equal(tmp_path)
    assert HEAD in load(tmp_path).parts


def test_one_file_wins_over_an_index(tmp_path):
    random_model("llama", seed=1).save_pretrained(tmp_path, max_shard_size="8KB")
    shards = {path.name: path.read_bytes() for path in tmp_path.glob("model*")}
    saved(tmp_path, "llama", {}, {})
    for name, content in shards.items():
        (tmp_path / name).write_bytes(content)
    assert_logits_equal(tmp_path)


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    saved(tmp_path, "llama", {}, {})
    (tmp_path / "adapter_config.json").write_text("{}")
    for stack in ("fused", "transformers"):
        with pytest.raises(UsageError, match="has an adapter"):
            load(tmp_path, stack)


@pytest.mark.parametrize("method", [{"load_in_4bit": True}, {"load_in_8bit": True, "quant_method": "bitsandbytes"}])
def test_a_quantized_checkpoint_says_which_library_it_needs(method, tmp_path, monkeypatch):
    monkeypatch.setattr(
        f"transformers.quantizers.quantizer_bnb_{'4' if 'load_in_4bit' in method else '8'}bit.is_bitsandbytes_available",
        bool,
    )
    saved(tmp_path, "llama", {}, {"quantization_config": method})
    with pytest.raises(UnavailableError, match=r"needs a package that is not installed: .*bitsandbytes") as caught:
        load(tmp_path)
    assert caught.value.hint.startswith("install it")


def test_key_value_heads_that_are_not_said_are_counted_as_transformers_makes_them(tmp_path):
    for family in FAMILIES:
        values = random_values(family) | {"num_attention_heads": 32, "hidden_size": 64}
        del values["num_key_value_heads"]
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert read_config(values).num_kv_heads == Checkpoint(str(tmp_path)).config.num_kv_heads


WINDOWED = {"use_sliding_window": True, "sliding_window": 16}
CONTEXTS = {
    "llama": ("llama", {}, {"sliding_window": 16}, 16),
    "llama with windows by layer": (
        "llama", {}, {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"] * 2}, 16
    ),
    "llama without": ("llama", {}, {"sliding_window": 16, "layer_types": ["full_attention"] * 4}, 128),
    "mistral": ("mistral", {"sliding_window": 16}, {}, 16),
    "mistral without": ("mistral", {"sliding_window": None}, {}, 128),
    "qwen2": ("qwen2", {**WINDOWED, "max_window_layers": 2}, {}, 16),
    "qwen3": ("qwen3", {**WINDOWED, "max_window_layers": 0}, {}, 16),
    "qwen2 by the number of layers": ("qwen2", {}, {**WINDOWED, "max_window_layers": 3, "layer_types": None}, 16),
    "qwen2 with deep windows alone": ("qwen2", {}, {**WINDOWED, "max_window_layers": 4, "layer_types": None}, 128),
    "qwen3 with a window out of use": ("qwen3", {}, {"sliding_window": 16}, 128),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_window_bounds_the_context_everywhere_where_transformers_has_one(name, tmp_path):
    family, changes, edits, context = CONTEXTS[name]
    values = saved(tmp_path, family, changes, edits)
    config = Checkpoint(str(tmp_path)).config
    assert config.original is None, "it is read directly"
    assert config.context == context == read_config(values).context
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = model.generate(torch.tensor([PROMPT]), max_length=min(context, 40), do_sample=False)[0].tolist()
    for stack in (load(tmp_path, "fused"), load(tmp_path, "transformers")):
        assert stack.context == context
        count = len(expected) - len(PROMPT)
        assert PROMPT + decode_ids(hierarchy_of(stack, 1, 2), (1, 2, 4), max_new_tokens=count) == expected


def test_a_mistral_model_with_types_of_layers_is_left_to_the_family_that_transformers_takes_it_for(tmp_path):
    saved(tmp_path, "mistral", {}, {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 16})
    stack = load(tmp_path)
    assert (stack.kind, stack.context) == ("transformers", 16)
    assert Checkpoint(str(tmp_path)).config.family == "ministral"


@pytest.mark.parametrize("ids", [7, [7], [3, 7, 9], None])
def test_every_end_of_text_of_the_configuration_is_kept(ids, tmp_path):
    saved(tmp_path, "llama", {}, {"eos_token_id": ids})
    config = Checkpoint(str(tmp_path)).config
    assert config.original is None and config.eos_ids == {*(ids if isinstance(ids, list) else [ids])} - {None}


class Capped(Olmo2ForCausalLM):
    """A model whose logits are capped as Gemma 2's are; that family itself has no attention of the kind needed."""

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        cap = self.config.final_logit_softcapping
        output.logits = cap * torch.tanh(output.logits / cap)
        return output


def test_the_logits_of_a_model_that_caps_them_are_capped():
    model = random_model("olmo2", final_logit_softcapping=2.0)
    model.__class__ = Capped
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0]
    assert 1.5 < float(expected.abs().max()) <= 2.0, "the cap matters"
    stack = TransformersStack(model, "some model")
    stack.reserve(len(IDS))
    hidden = stack.run(stack.embed(IDS), 0, stack.num_layers, 0)
    torch.testing.assert_close(stack.head(hidden), expected, rtol=0, atol=1e-3)
    words = torch.tensor([2, 5, 11])
    torch.testing.assert_close(stack.head(hidden, stack.reduce_head(words)), expected[:, words], rtol=0, atol=1e-3)


ROPE = {"rope_type": "default", "rope_theta": 1e4}
WRONG = {
    "num_hidden_layers": [None, "4", 4.0, 0, True],
    "hidden_size": [None, 30],
    "num_key_value_heads": ["2", 3],
    "head_dim": ["8", 7],
    "vocab_size": [None],
    "max_position_embeddings": [1e3, None],
    "rms_norm_eps": [None, "1e-5", -1.0, float("nan"), False],
    "hidden_act": [None, "made_up"],
    "tie_word_embeddings": [None, "yes"],
    "attention_bias": [None, 1],
    "mlp_bias": ["no"],
    "eos_token_id": ["x", [1, None], True],
    "dtype": [5, "float99"],
    "torch_dtype": [{}],
    "quantization_config": ["int8", {}],
    "rope_parameters": [[1], "x"],
    "rope_scaling": ["x", [YARN]],
    "rope_parameters.rope_theta": [{**ROPE, "rope_theta": value} for value in (None, "x", 0, 10**400)],
    "rope_parameters.rope_type": [{**ROPE, "rope_type": value} for value in (None, 5)],
    "rope_parameters.factor": [{**ROPE, "rope_type": "linear"}, {**LLAMA3, "factor": "8"}, {**YARN, "factor": []}],
    "rope_parameters.low_freq_factor": [{**LLAMA3, "low_freq_factor": None}],
    "rope_parameters.full_attention": [{"full_attention": ROPE}],
    "rope_scaling.beta_fast": [{**YARN, "beta_fast": "32"}],
    "is_causal": [False, None],
    "per_layer_config": [{"1": {"rms_norm_eps": 0.5}}],
    "transformers_weights": ["other.safetensors"],
    "model_type": [None, ["llama"]],
}
WRONG_ELSEWHERE = {
    "sliding_window": [("mistral", {"sliding_window": value}) for value in ("8", 0)]
    + [("qwen2", {**WINDOWED, "sliding_window": 0, "layer_types": ["sliding_attention"] * 4})],
    "use_sliding_window": [("qwen2", {"use_sliding_window": None})],
    "max_window_layers": [("qwen2", {**WINDOWED, "max_window_layers": "x", "layer_types": None})],
    "layer_types": [("qwen3", {"layer_types": value}) for value in (5, ["made_up"] * 4, ["full_attention"] * 3, [])]
    + [("qwen2", {"layer_types": ["sliding_attention"] * 4})],
    "rope_theta": [(family, {"rope_parameters": None, "rope_theta": None}) for family in ("qwen2", "phi3")],
    "hidden_size": [("phi3", {"hidden_size": -1})],
    "num_attention_heads": [("phi3", {"num_attention_heads": value}) for value in (0, "4", None)],
    "dtype": [("phi3", {"dtype": value}) for value in ("float99", 5, [])],
    "quantization_config": [("phi3", {"quantization_config": value}) for value in ("int8", 0)],
    "partial_rotary_factor": [("llama", {"partial_rotary_factor": 0.5, "rope_scaling": YARN})],
}
REFUSED = [
    *(("llama", key, {key.split(".")[0]: value}) for key, values in WRONG.items() for value in values),
    *((family, key, edits) for key, cases in WRONG_ELSEWHERE.items() for family, edits in cases),
]


@pytest.mark.parametrize(("family", "key", "edits"), REFUSED)
def test_a_value_that_cannot_be_used_is_refused_by_its_key(family, key, edits, tmp_path):
    values = {"model_type": family, **SOUND[family]} if family == "phi3" else random_values(family)
    (tmp_path / "config.json").write_text(json.dumps(values | edits))
    if (shape := read_config(values | edits)) is not None:  # the memory is estimated before
        assert shape.context > 0 and isinstance(shape.dtype, str | None)
    with pytest.raises(UsageError) as caught:
        _ = Checkpoint(str(tmp_path)).config
    assert caught.value.message.startswith(f"config.json of {tmp_path}: ")
    assert (key in caught.value.message) or (key == "hidden_size" and "num_attention_heads" in caught.value.message)


SOUND = {"phi3": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": None}}


def random_values(family):
    return random_model(family, layers=4).config.to_dict()


def test_a_value_that_nothing_reads_is_let_be(tmp_path):
    saved(tmp_path, "llama", {}, {"rope_theta": None, "max_window_layers": "x", "use_sliding_window": 5})
    assert_logits_equal(tmp_path)
