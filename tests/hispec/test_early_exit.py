"""A model without a profile drafts with an early exit where it was trained for one, and only there."""

import pytest
import torch

from hispec import Engine, early_exit
from hispec.models.checkpoint import Checkpoint
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from hispec.models.tokenizer import load_tokenizer
from hispec.profile import load_profile, profile_for_model
from tests.support import random_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def ordinary(tmp_path, shipped_model):
    """A folder with a random model that was not trained for anything, and the shipped model's tokenizer."""
    folder = tmp_path / "ordinary"
    tokenizer = load_tokenizer(Checkpoint(str(shipped_model)))
    model = random_model("llama", layers=8, vocab=len(tokenizer), hidden_size=64)
    for number, layer in enumerate(model.model.layers):  # later layers decide, too
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.data *= 1 + number
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def engine_of(folder, **options):
    return Engine.from_profile(profile_for_model(str(folder), 16, None, None), **options)


def exits_of(engine):
    return [(level.name, level.exit_layer, level.weights) for level in engine.hierarchy.levels]


@pytest.mark.parametrize("stack", ["fused", "transformers"])
def test_a_model_trained_for_early_exit_drafts_with_an_exit(shipped_model, stack):
    engine = engine_of(shipped_model, stack=stack, max_new_tokens=20)
    copy = "int4" if stack == "fused" else None
    assert ("draft", 2, copy) in exits_of(engine)
    assert engine.profile.assumed
    plain = engine.with_settings(mode="autoregressive")
    asked = "Tom has 3 apples and buys 4 more."
    assert engine.generate(asked).token_ids == plain.generate(asked).token_ids


def test_an_ordinary_model_drafts_with_none(ordinary):
    engine = engine_of(ordinary)
    depth = engine.hierarchy.target.exit_layer
    assert {exit_layer for _, exit_layer, _ in exits_of(engine)} <= {0, depth}


def test_the_kv_cache_keeps_what_it_held(shipped_model):
    stack = load_stack(Checkpoint(str(shipped_model)), Placement())
    stack.reserve(64)
    with torch.inference_mode():
        stack.run(stack.embed([1, 2, 3]), 0, stack.num_layers, 0, prompt=True)
    held = [layer.clone() for layer in stack.cache.layers]
    early_exit.measure_agreement(stack, load_tokenizer(Checkpoint(str(shipped_model))), 2)
    assert all(
        torch.equal(layer[:, :, :, :3], own[:, :, :, :3]) for layer, own in zip(stack.cache.layers, held, strict=True)
    )


def test_what_was_found_is_remembered_for_these_weights(shipped_model, ordinary, monkeypatch):
    found = exits_of(engine_of(shipped_model))
    engine_of(ordinary)

    def refuse(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(early_exit, "measure_agreement", refuse)
    assert exits_of(engine_of(shipped_model)) == found
    assert ("draft", 2, "int4") not in exits_of(engine_of(ordinary))


@pytest.mark.parametrize("damaged", ["no JSON", '{"DIGEST": "0.9"}', "[]"])
def test_a_damaged_file_is_measured_again(shipped_model, tmp_path, damaged):
    found = exits_of(engine_of(shipped_model))
    file = tmp_path / "cache" / "hispec" / early_exit.FILE
    digest = next(iter(early_exit.remembered(early_exit.FILE)))
    file.write_text(damaged.replace("DIGEST", digest))
    assert exits_of(engine_of(shipped_model)) == found


def test_nothing_is_tried_where_levels_were_chosen_or_none_is_used(shipped_model, monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(early_exit, "measure_agreement", refuse)
    Engine.from_profile(load_profile("tiny"))
    Engine.from_profile(profile_for_model(str(shipped_model), 16, 3, None))
    engine_of(shipped_model, mode="autoregressive")


def test_what_else_the_profile_says_is_kept(shipped_model):
    profile = profile_for_model(str(shipped_model), 16, None, None).model_copy(update={"chat_template": "own"})
    found = Engine.from_profile(profile).profile
    assert (found.draft.exit_layer, found.chat_template, found.target) == (2, "own", profile.target)
