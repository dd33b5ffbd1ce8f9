"""Where a decoding value comes from: option > environment > profile > generation config > default."""

import pytest

from hispec.errors import UsageError
from hispec.profile import Decoding, Profile, Target, load_profile
from hispec.settings import resolve_settings

PROFILE = Profile(name="p", target=Target(model="m", dtype="bfloat16"), decoding=Decoding(draft_tokens=3))
SOURCES = {
    "options": {"draft_tokens": 5},
    "environ": {"HISPEC_DRAFT_TOKENS": "4", "HISPEC_MODE": "single-layer", "OTHER": "1"},
    "generation_config": {"draft_tokens": 9, "max_new_tokens": 77, "do_sample": True},
}


def test_the_first_source_that_has_a_value_wins():
    settings, origins = resolve_settings(
        SOURCES["options"], PROFILE, environ=SOURCES["environ"], generation_config=SOURCES["generation_config"]
    )
    assert (settings.draft_tokens, origins["draft_tokens"]) == (5, "option")
    assert (settings.mode, origins["mode"]) == ("single-layer", "environment")
    assert (settings.dtype, origins["dtype"]) == ("bfloat16", "profile")
    assert (settings.max_new_tokens, origins["max_new_tokens"]) == (77, "generation config")
    assert (settings.validate_every, origins["validate_every"]) == (4, "default")


def test_each_source_shows_when_those_above_it_are_silent():
    assert resolve_settings({}, PROFILE, environ=SOURCES["environ"])[0].draft_tokens == 4
    assert resolve_settings({}, PROFILE, generation_config=SOURCES["generation_config"])[0].draft_tokens == 3
    assert resolve_settings({"draft_tokens": None}, PROFILE)[0].draft_tokens == 3


@pytest.mark.parametrize(
    ("options", "environ", "cause"),
    [
        ({"max_new_tokens": 0}, {}, "--max-new-tokens is 0"),
        ({"max_new_tokens": -3}, {}, "--max-new-tokens is -3"),
        ({"dtype": "int4"}, {}, "--dtype is 'int4'"),
        ({}, {"HISPEC_DRAFT_TOKENS": "many"}, "HISPEC_DRAFT_TOKENS is 'many'"),
        ({}, {"HISPEC_MODE": "fast"}, "HISPEC_MODE is 'fast'"),
        ({}, {"HISPEC_STACK": "tall"}, "HISPEC_STACK is 'tall'"),
    ],
)
def test_a_refused_value_names_its_source(options, environ, cause):
    with pytest.raises(UsageError) as caught:
        resolve_settings(options, PROFILE, environ=environ)
    assert caught.value.cause.startswith(cause)
    assert caught.value.cure


def test_a_generation_config_samples_only_where_it_says_so():
    config = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 5}
    silent, _ = resolve_settings({}, PROFILE, generation_config=config)
    assert (silent.temperature, silent.top_p, silent.max_new_tokens) == (0, 1, 5)
    sampled, origins = resolve_settings({}, PROFILE, generation_config={**config, "do_sample": True})
    assert (sampled.temperature, sampled.top_p, sampled.top_k) == (0.6, 0.9, 50)
    assert origins["temperature"] == "generation config"


def test_mode_single_layer_takes_the_length_that_it_was_tuned_for():
    profile = load_profile("tiny")
    assert profile.single_layer is not None
    for options, environ, expected in (
        ({"mode": "single-layer"}, {}, profile.single_layer.draft_tokens),
        ({}, {"HISPEC_MODE": "single-layer"}, profile.single_layer.draft_tokens),
        ({"mode": "single-layer", "validate_every": 3}, {}, 3),
        ({}, {}, profile.decoding.validate_every),
    ):
        assert resolve_settings(options, profile, environ=environ)[0].validate_every == expected
