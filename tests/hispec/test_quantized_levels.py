"""Levels that read a quantized copy of the target's weights: they change no token, and a profile asks for them."""

import pytest
import torch
from transformers import GPTNeoXConfig

from hispec import loading
from hispec.adaptation import level_key, performance_model
from hispec.api import Engine
from hispec.decoding.decoder import Decoder
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.sampling import Sampling
from hispec.errors import ProfileError, UnavailableError, UsageError
from hispec.events import Verified
from hispec.memory import estimate
from hispec.models.graphs import with_graphs
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.static import StaticPolicy
from hispec.precedence import resolve_settings
from hispec.profile import load_profile, parse_profile
from hispec.text import encode_prompt
from hispec.validation import check_at_hand
from tests.support import PROMPT, fused_stack, random_model

SAMPLINGS = {"greedy": Sampling(), "top-p": Sampling(0.7, top_p=0.9), "temperature 1": Sampling(1.0)}
KINDS = {
    "copy": lambda t: [Level("copy", t.quantized("int4"), 4)],
    "exit of a copy": lambda t: [Level("draft", t.quantized("int4", 2), 2)],
    "exit of a copy, copy": lambda t: [Level("draft", t.quantized("int4"), 1), Level("copy", t.quantized("int4"), 4)],
    "4-bit exit, 8-bit copy": lambda t: [
        Level("draft", t.quantized("int4", 1), 1),
        Level("copy", t.quantized("int8"), 4),
    ],
    "exit, copy": lambda t: [Level("draft", t, 1), Level("copy", t.quantized("int8"), 4)],
    "n-grams, copy": lambda t: [Level.of_ngrams(2, 4), Level("copy", t.quantized("int8"), 4)],
    "n-grams, exit of a copy, exit": lambda t: [
        Level.of_ngrams(2, 4),
        Level("draft", t.quantized("int8", 1), 1),
        Level("exit", t, 3),
    ],
}


def policies(hierarchy):
    periods = (1, 2, 4, 4)[: len(hierarchy)]
    yield lambda: StaticPolicy(periods)
    yield lambda: StaticPolicy.of(hierarchy, 3, 9)
    yield lambda: AdaptivePolicy(performance_model(hierarchy, None))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.float32),
        ("llama", torch.float16),
        *((family, torch.bfloat16) for family in ("llama", "mistral", "qwen2", "qwen3")),
    ],
)
def test_no_token_differs(family, dtype):
    rejected = 0
    target = fused_stack(random_model(family, max_position_embeddings=256).to(dtype))
    target.prepare("auto")
    last = Level("target", target, 4)
    for name, kind in KINDS.items():
        hierarchy = Hierarchy([*kind(target), last])
        for seed, sampling in enumerate(SAMPLINGS.values()):
            alone = Decoder(Hierarchy([last]), lambda: StaticPolicy((1,)), lambda *_, s=sampling: s)
            expected = alone.token_ids(PROMPT, 30, seed)
            for policy in policies(hierarchy):
                events = list(Decoder(hierarchy, policy, lambda *_, s=sampling: s).decode(PROMPT, 30, seed))
                ids = [token for event in events if event.kind == "committed" for token in event.token_ids]
                assert ids == expected, (name, sampling)
                rejected += sum(event.accepted < event.proposed for event in events if isinstance(event, Verified))
    assert rejected > 20, "levels that never disagree show nothing"


def test_no_token_differs_where_passes_are_recorded():
    target = with_graphs(fused_stack(random_model(max_position_embeddings=256)), "on")
    target.prepare("auto")
    last = Level("target", target, 4)
    expected = Decoder(Hierarchy([last]), lambda: StaticPolicy((1,))).token_ids(PROMPT, 40)
    for name, kind in KINDS.items():
        hierarchy = Hierarchy([*kind(target), last])
        for policy in policies(hierarchy):
            assert Decoder(hierarchy, policy).token_ids(PROMPT, 40) == expected, name


def test_equal_copies_are_made_once():
    target = fused_stack(random_model())
    shallow = target.quantized("int4", 2)
    assert target.quantized("int4", 1) is target.quantized("int4", 2) is shallow
    assert target.quantized("int4") is target.quantized("int4", 4) is not shallow
    assert target.quantized("int4") is not target.quantized("int8")
    assert target.quantized("int4").cache is target.cache


def tiny(tmp_path, text):
    return parse_profile(f"target: {{model: 'builtin:tiny'}}\n{text}", tmp_path / "mine.yaml")


LEVELS = [
    "draft: {exit_layer: 2, weights: int4}\nintermediate: {weights: int8}",
    "draft: {exit_layer: 1}\nintermediate: {weights: int4}",
    "draft: {weights: int4, ngram: {max: 3, tokens: 6}}",
    "draft: {weights: int4}\nintermediate: {weights: int8, head: full}",
    "draft: {exit_layer: 2, weights: int8}\nintermediate: {exit_layer: 4}",
]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("policy", ["static", "adaptive"])
def test_a_profile_asks_for_them(tmp_path, levels, policy):
    profile = tiny(tmp_path, levels)
    engine = Engine.from_profile(profile, dtype="bfloat16", policy=policy, max_new_tokens=60)
    prompt = encode_prompt(engine.tokenizer, "Ben has 4 apples and buys 7 more. How many apples does Ben have?")
    for temperature in (0.0, 0.8):
        own = engine.with_settings(temperature=temperature)
        expected = own.with_settings(mode="autoregressive").decoder().token_ids(prompt, 60, 5)
        assert own.decoder().token_ids(prompt, 60, 5) == expected
        assert own.with_settings(mode="single-layer").decoder().token_ids(prompt, 60, 5) == expected


def test_levels_are_told_apart_by_their_weights(tmp_path):
    engine = Engine.from_profile(tiny(tmp_path, LEVELS[0]), dtype="float32")
    assert [level_key(engine.hierarchy, level) for level in range(3)] == ["2:int4", "16:int8", "16"]
    assert [level.weights for level in engine.hierarchy.levels] == ["int4", "int8", None]


def test_levels_of_equal_weights_share_one_copy(tmp_path):
    profile = tiny(tmp_path, "draft: {exit_layer: 2, weights: int4}\nintermediate: {weights: int4}")
    hierarchy = Engine.from_profile(profile, dtype="float32").hierarchy
    assert hierarchy.levels[0].stack is hierarchy.levels[1].stack
    assert hierarchy.below == (None, 0, None)


@pytest.mark.parametrize("levels", LEVELS)
def test_their_memory_is_estimated(tmp_path, levels):
    profile = tiny(tmp_path, levels)
    engine = Engine.from_profile(profile, dtype="bfloat16")
    stacks = {level.stack for level in engine.hierarchy.levels if level.weights is not None}
    settings, _ = resolve_settings({"dtype": "bfloat16"}, profile)
    need = estimate(profile, settings)
    assert need.models[0].copies == pytest.approx(sum(stack.quantized_bytes for stack in stacks), rel=0.05)
    assert any("quantized copies" in what for _, what in need.lines())
    alone, _ = resolve_settings({"mode": "autoregressive"}, profile)
    assert estimate(profile, alone).models[0].copies == 0


def test_single_layer_may_be_tuned_with_them(tmp_path):
    levels = "draft: {exit_layer: 2}\nsingle_layer: {weights: int4, draft_tokens: 6}"
    engine = Engine.from_profile(tiny(tmp_path, levels), mode="single-layer")
    draft = engine.hierarchy.levels[0]
    assert (draft.weights, draft.exit_layer) == ("int4", 16)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("draft: {weights: int3}", "int3"),
        ("draft: {weights: int4, model: a/b}", "leave draft.model out"),
        ("draft: {exit_layer: 2}\nintermediate: {weights: int4, model: a/b}", "leave intermediate.model out"),
        ("draft: {weights: int4}\nintermediate: {weights: int4}", "read the same"),
        ("draft: {weights: int4}\nintermediate: {exit_layer: 4, weights: int8}", "must be deeper"),
        ("draft: {exit_layer: 4, weights: int4}\nintermediate: {exit_layer: 4, weights: int4}", "must be deeper"),
        ("draft: {exit_layer: 2}\nsingle_layer: {draft_tokens: 6}", "give an exit_layer, weights, or both"),
        ("draft: {exit_layer: 2}\nintermediate: {head: full}", "give an exit_layer, weights, or a model"),
    ],
)
def test_levels_that_make_no_sense_are_refused(tmp_path, levels, message):
    with pytest.raises(ProfileError) as caught:
        tiny(tmp_path, levels)
    assert message in str(caught.value.message)


def test_an_exit_of_other_weights_may_be_as_deep(tmp_path):
    tiny(tmp_path, "draft: {exit_layer: 4, weights: int4}\nintermediate: {exit_layer: 4}")


def test_the_transformers_stack_says_that_it_has_none(tmp_path):
    with pytest.raises(UnavailableError, match="need the fused stack"):
        Engine.from_profile(tiny(tmp_path, LEVELS[0]), stack="transformers")
    plain = Engine.from_profile(load_profile("tiny"), stack="transformers", mode="autoregressive")
    assert plain.hierarchy.target.weights is None
    with pytest.raises(UnavailableError, match="need the fused stack"):
        plain.stacks["builtin:tiny"].quantized("int4")


@pytest.mark.parametrize("where", [{"stack": "transformers"}, {"quantization": "8bit"}])
def test_levels_that_cannot_be_are_refused_before_weights_are_read(tmp_path, monkeypatch, where):
    monkeypatch.setattr(loading, "load_stack", lambda *_: pytest.fail("weights were read"))
    for mode in ("hispec", "single-layer"):
        with pytest.raises(UnavailableError, match="levels of int4 weights need the fused stack, on which"):
            Engine.from_profile(tiny(tmp_path, LEVELS[0]), mode=mode, **where)


def test_a_profile_whose_target_has_no_copies_is_not_valid(tmp_path):
    folder = tmp_path / "neox"
    GPTNeoXConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2).save_pretrained(folder)
    text = f"target: {{model: {folder}}}\ndraft: {{weights: int4}}"
    with pytest.raises(UnavailableError, match="it is a 'gpt_neox' model"):
        check_at_hand(parse_profile(text, tmp_path / "mine.yaml"))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("levels", ["draft: {exit_layer: 1}\nintermediate: {exit_layer: 3}", LEVELS[0]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_target_is_decoded_exactly(tmp_path, quantization, levels, dtype):
    engine = Engine.from_profile(tiny(tmp_path, levels), dtype=dtype, quantization=quantization)
    assert engine.environment["quantization"] == quantization
    assert engine.hierarchy.stack_of(-1).quantization == quantization
    prompt = encode_prompt(engine.tokenizer, "Ben has 4 apples and buys 7 more. How many apples does Ben have?")
    for temperature in (0.0, 0.8):
        own = engine.with_settings(temperature=temperature)
        expected = own.with_settings(mode="autoregressive").decoder().token_ids(prompt, 60, 5)
        assert own.decoder().token_ids(prompt, 60, 5) == expected


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_memory_of_a_quantized_target_is_estimated(tmp_path, quantization):
    profile = tiny(tmp_path, "draft: {exit_layer: 1}")
    engine = Engine.from_profile(profile, dtype="bfloat16", quantization=quantization)
    target = engine.hierarchy.stack_of(-1)
    settings, _ = resolve_settings({"dtype": "bfloat16", "quantization": quantization}, profile)
    held = target.quantized_bytes + sum(part.nbytes for name, part in target._weights.parts.items())
    assert estimate(profile, settings).models[0].weights == pytest.approx(held, rel=0.05)


def test_a_target_that_the_fused_stack_cannot_quantize_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not asked for"):
        Engine.from_profile(tiny(tmp_path, "draft: {exit_layer: 1}"), quantization="int8", stack="transformers")
