"""All arms write the same tokens on the same weights, end alike, and tell the times at which tokens became final."""

from dataclasses import replace

import pytest
import yaml
from transformers import AutoTokenizer

from hispec import Engine
from hispec.bench.arms import check_arms, make_arms
from hispec.bench.names import ARMS, default_arms
from hispec.errors import UsageError
from hispec.profile import DraftSection, NgramSection, Profile, SingleLayerSection, published
from hispec.settings import Settings
from hispec.text import encode_prompt
from tests.support import random_model

QUESTION = "Ben has 12 cards. Mei gives Ben 5 more. Then Ben loses 3 of them. How many cards does Ben have now?"
EXITS_ONLY = [name for name in ARMS if name != "hf-assisted"]


@pytest.fixture(scope="module")
def prompt(engine):
    return encode_prompt(engine.tokenizer, QUESTION)


@pytest.mark.parametrize("name", EXITS_ONLY)
@pytest.mark.parametrize("stop", [(), ("12 ",), ("5 =", "never")])
def test_arms_write_and_end_alike(engine, prompt, name, stop):
    reference, arm = make_arms(["autoregressive", name], engine)
    expected = reference.answer(prompt, 80, stop, seed=0)
    for limit in (80, 7, 1):
        answer = arm.answer(prompt, limit, stop, seed=0)
        assert answer.token_ids == expected.token_ids[:limit]
        if limit == 80:
            assert (answer.text, answer.finish_reason) == (expected.text, expected.finish_reason)
            assert answer.finish_reason == ("stop" if stop else "eos")
    assert not any(text in expected.text for text in stop)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_arms_end_alike_at_a_special_token_that_is_a_stop_text(engine, before, after):
    prompt = encode_prompt(engine.tokenizer, "Tom has 2 apples and buys 4 more. How many apples does Tom have now?")
    endless = Engine(engine.profile, engine.settings, replace(engine.models, eos_ids=frozenset()))
    reference, *others = make_arms(["autoregressive", "hispec", "hf", "hf-early-exit"], endless)
    whole = engine.tokenizer.decode(reference.answer(prompt, 64, (), seed=0).token_ids)
    at = whole.index("<|end|>")
    stop = whole[at - before : at + len("<|end|>") + after]
    expected = reference.answer(prompt, 64, (stop,), seed=0)
    assert expected.finish_reason == "stop" and "<|end|>" not in expected.text
    assert stop in engine.tokenizer.decode(expected.token_ids)
    assert stop not in engine.tokenizer.decode(expected.token_ids[:-1])
    for arm in others:
        answer = arm.answer(prompt, 64, (stop,), seed=0)
        assert (answer.token_ids, answer.text, answer.finish_reason) == (expected.token_ids, expected.text, "stop")


@pytest.mark.parametrize("name", EXITS_ONLY)
def test_moments_account_for_every_token_in_order(engine, prompt, name):
    (arm,) = make_arms([name], engine)
    answer = arm.answer(prompt, 40, (), seed=0)
    assert sum(count for _, count in answer.moments) == len(answer.token_ids)
    times = [at for at, _ in answer.moments]
    assert times == sorted(times) and times[0] > 0 and times[-1] <= answer.seconds
    assert (answer.stats is not None) == (not name.startswith(("hf", "prompt")))


def test_hf_assisted_uses_the_profiles_draft_model(tmp_path, shipped_model):
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    random_model("llama", layers=2, vocab=len(tokenizer)).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    (tmp_path / "small" / "generation_config.json").write_text('{"num_beams": 3, "min_new_tokens": 9}')
    path = tmp_path / "mine.yaml"
    levels = {"target": {"model": "builtin:tiny", "dtype": "float32"}, "draft": {"model": str(tmp_path / "small")}}
    path.write_text(yaml.safe_dump(levels))
    other = Engine.from_profile(str(path), max_new_tokens=24)
    ids = encode_prompt(other.tokenizer, QUESTION)
    answers = [arm.answer(ids, 24, (), seed=0).token_ids for arm in make_arms(["autoregressive", "hf-assisted"], other)]
    assert answers[0] == answers[1]
    with pytest.raises(UsageError, match="needs a draft exit"):
        make_arms(["hf-early-exit"], other)


def test_arms_without_their_levels_are_refused(engine):
    with pytest.raises(UsageError, match="arm hf-assisted needs a draft model"):
        make_arms(["hispec", "hf-assisted"], engine)
    with pytest.raises(UsageError, match="no arm 'hfx'"):
        make_arms(["hfx"], engine)


def test_sampled_arms_repeat_with_their_seed(engine, prompt):
    warm = engine.with_settings(temperature=1.0)
    for arm in make_arms(["hispec", "hf"], warm):
        first, again, other = (arm.answer(prompt, 16, (), seed).token_ids for seed in (1, 1, 2))
        assert first == again != other


def test_the_exit_of_single_layer_is_a_draft_exit_too(engine):
    ngrams, other = DraftSection(ngram=NgramSection(max=4, tokens=8)), DraftSection(model="other/model")
    for draft in (ngrams, other, None):
        profile = engine.profile.model_copy(update={"draft": draft, "intermediate": None, "single_layer": None})
        with pytest.raises(UsageError, match="arm hf-early-exit needs a draft exit"):
            check_arms(["hf-early-exit"], profile, Settings())
        tuned = profile.model_copy(update={"single_layer": SingleLayerSection(exit_layer=2, draft_tokens=4)})
        check_arms(["hf-early-exit", "single-layer"], tuned, Settings())
        copied = profile.model_copy(update={"single_layer": SingleLayerSection(weights="int4", draft_tokens=4)})
        check_arms(["single-layer"], copied, Settings())
        with pytest.raises(UsageError, match="arm hf-early-exit needs a draft exit"):
            check_arms(["hf-early-exit"], copied, Settings())


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_arms_of_transformers_have_no_weights_of_the_fused_stacks_formats(engine, quantization):
    settings = replace(engine.settings, quantization=quantization)
    check_arms(["hispec", "single-layer", "autoregressive"], engine.profile, settings)
    with pytest.raises(UsageError, match=f"arm hf is of transformers.*{quantization}"):
        check_arms(["hispec", "hf"], engine.profile, settings)


COPIES = {
    "draft": {"exit_layer": 1, "weights": "int4"},
    "intermediate": {"weights": "int4"},
    "single_layer": {"exit_layer": 2, "weights": "int8", "draft_tokens": 7},
    "decoding": {"draft_tokens": 3, "validate_every": 9, "policy": "adaptive"},
}


def with_levels(levels):
    return Profile.model_validate({"name": "mine", "target": {"model": "builtin:tiny"}} | levels)


def levels_and_lengths(profile):
    shown = [
        None if level is None else level.model_dump(exclude_none=True)
        for level in (profile.draft, profile.intermediate)
    ]
    return *shown, profile.decoding.draft_tokens, profile.decoding.validate_every


@pytest.mark.parametrize(
    ("levels", "mode", "expected"),
    [
        # An exit of a copy is that of the full weights; a whole copy becomes the paper's exit, with its lengths.
        (COPIES, "hispec", ({"exit_layer": 1}, {"exit_layer": 4}, 2, 4)),
        (COPIES, "single-layer", ({"exit_layer": 2}, None, 3, 7)),
        ({"draft": {"exit_layer": 6, "weights": "int4"}}, "hispec", ({"exit_layer": 6}, {"exit_layer": 7}, 2, 4)),
        ({"draft": {"weights": "int4", "ngram": {"max": 3, "tokens": 4}}}, "hispec", ({"exit_layer": 2}, {"exit_layer": 4}, 2, 4)),
        ({"draft": {"weights": "int4"}}, "single-layer", ({"exit_layer": 2}, None, 4, 4)),
        (
            {
                "draft": {"exit_layer": 1, "weights": "int4", "head": 256},
                "intermediate": {"exit_layer": 3, "weights": "int4"},
                "decoding": {"draft_tokens": 3, "validate_every": 9},
            },
            "hispec",
            ({"exit_layer": 1, "head": 256}, {"exit_layer": 3}, 3, 9),
        ),
        ({"draft": {"model": "a/b"}, "intermediate": {"weights": "int8"}}, "hispec", ({"model": "a/b"}, {"exit_layer": 4}, 2, 4)),
    ],
)  # fmt: skip
def test_levels_as_published_are_exits_of_the_full_weights(levels, mode, expected):
    found = published(with_levels(levels), mode, 16)
    assert levels_and_lengths(found) == expected
    assert found.single_layer is None and found.adaptive is None


def test_too_few_layers_for_levels_as_published_are_refused():
    with pytest.raises(UsageError, match="needs 2 exits, and builtin:tiny has 2 layers"):
        published(with_levels({"draft": {"weights": "int4"}}), "hispec", 2)


def test_arms_as_published_read_the_full_weights_beside_quantized_levels(prompt):
    engine = Engine.from_profile(with_levels(COPIES), dtype="float32")
    names = ["autoregressive", "hispec", "single-layer", "hispec-published", "single-layer-published"]
    answers = {arm.name: arm.answer(prompt, 40, (), seed=0) for arm in make_arms(names, engine)}
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == 1
    told = {
        name: [(level.exit_layer, level.weights, level.model) for level in answer.stats.levels]
        for name, answer in answers.items()
    }
    assert told == {
        "autoregressive": [],
        "hispec": [(1, "int4", "builtin:tiny"), (16, "int4", "builtin:tiny")],
        "single-layer": [(2, "int8", "builtin:tiny")],
        "hispec-published": [(1, None, "builtin:tiny"), (4, None, "builtin:tiny")],
        "single-layer-published": [(2, None, "builtin:tiny")],
    }


def test_where_levels_are_quantized_single_layer_as_published_is_measured_too():
    plain = ["hispec", "single-layer", "autoregressive"]
    assert default_arms(with_levels({"draft": {"exit_layer": 2}})) == plain
    assert default_arms(with_levels(COPIES)) == [*plain[:2], "single-layer-published", plain[2]]
