"""The source of a setting: option > environment > profile > generation config > default."""

from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from hispec.errors import UsageError
from hispec.precedence import chosen_value, resolve_settings, without_effect
from hispec.profile import DecodingSection, Profile, TargetSection, list_profiles, load_profile
from hispec.settings import SETTINGS, Settings

PROFILE = Profile(name="p", target=TargetSection(model="m", dtype="bfloat16"), decoding=DecodingSection(draft_tokens=3))
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
    ("options", "environ", "message"),
    [
        ({"max_new_tokens": 0}, {}, "--max-new-tokens is 0"),
        ({"max_new_tokens": -3}, {}, "--max-new-tokens is -3"),
        ({"dtype": "int4"}, {}, "--dtype is 'int4'"),
        ({}, {"HISPEC_DRAFT_TOKENS": "many"}, "HISPEC_DRAFT_TOKENS is 'many'"),
        ({}, {"HISPEC_MODE": "fast"}, "HISPEC_MODE is 'fast'"),
        ({}, {"HISPEC_STACK": "tall"}, "HISPEC_STACK is 'tall'"),
    ],
)
def test_a_refused_value_names_its_source(options, environ, message):
    with pytest.raises(UsageError) as caught:
        resolve_settings(options, PROFILE, environ=environ)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "options", "environ", "found"),
    [
        ("mode", {}, {}, "hispec"),
        ("mode", {"mode": "single-layer"}, {"HISPEC_MODE": "autoregressive"}, "single-layer"),
        ("load_format", {}, {"HISPEC_LOAD_FORMAT": "dummy"}, "dummy"),
        ("tensor_parallel", {}, {"HISPEC_TENSOR_PARALLEL": "on"}, True),
        ("tensor_parallel", {}, {"HISPEC_TENSOR_PARALLEL": "No"}, False),
    ],
)
def test_one_setting_is_read_before_the_profile_as_with_it(name, options, environ, found):
    assert chosen_value(name, options, environ) == found
    assert getattr(resolve_settings(options, PROFILE, environ=environ)[0], name) == found


def test_one_setting_is_refused_before_the_profile_as_with_it():
    for options, environ in (({"mode": "fast"}, {}), ({}, {"HISPEC_MODE": "fast"})):
        with pytest.raises(UsageError) as early:
            chosen_value("mode", options, environ)
        with pytest.raises(UsageError) as late:
            resolve_settings(options, PROFILE, environ=environ)
        assert (early.value.message, early.value.hint) == (late.value.message, late.value.hint)


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draft_tokens": 13}, "draft_tokens 13 is above validate_every 12"),
        ({"validate_every": 1}, "draft_tokens 2 is above validate_every 1"),
        ({"draft_tokens": 12}, None),
        ({"draft_tokens": 3, "mode": "single-layer"}, "changes nothing in mode single-layer"),
        ({"validate_every": 3, "mode": "single-layer"}, None),
        ({"validate_every": 3, "mode": "autoregressive"}, "nothing is drafted"),
        ({"draft_tokens": 3, "policy": "adaptive"}, "draft_tokens changes nothing with the adaptive policy"),
        ({"top_k": 5, "min_p": 0.1}, "top_k and min_p change nothing at temperature 0"),
        ({"top_k": 5, "temperature": 1.0}, None),
        ({}, None),
    ],
)
def test_what_changes_nothing_is_told(options, said):
    profile = load_profile("tiny")
    for given, environ in (
        (options, {}),
        ({}, {f"HISPEC_{key.upper()}": str(value) for key, value in options.items()}),
    ):
        notes = without_effect(*resolve_settings(given, profile, environ=environ))
        assert [said in note for note in notes] == ([True] if said else [])


@pytest.mark.parametrize("name", sorted(dict(list_profiles())))
def test_a_shipped_profile_has_nothing_to_be_told(name):
    profile = load_profile(name)
    settings, _ = resolve_settings({}, profile)
    as_if_asked = {key: "option" for key, value in profile.decoding.model_dump().items() if value is not None}
    assert without_effect(replace(settings, policy="static"), as_if_asked) == []


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("seed", 0, 2**63 - 1),
        ("draft_tokens", 1, 2**31 - 1),
        ("validate_every", 1, 2**31 - 1),
        ("max_new_tokens", 1, 2**31 - 1),
        ("intermediate_top_k", 1, 2**31 - 1),
        ("top_k", 0, 2**31 - 1),
        ("temperature", 0.0, 1e4),
        ("top_p", 1e-9, 1.0),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", 0.01, 100.0),
    ],
)
def test_numbers_have_both_ends_wherever_they_come_from(name, least, most):
    profile = load_profile("tiny")

    def resolved(value, as_option):
        given, environ = ({name: value}, {}) if as_option else ({}, {f"HISPEC_{name.upper()}": str(value)})
        return getattr(resolve_settings(given, profile, environ=environ)[0], name)

    beyond = (least - 1, most + 1, most * 2**70, float("nan"))
    for as_option in (True, False):
        assert (resolved(least, as_option), resolved(most, as_option)) == (least, most)
        for value in beyond:
            with pytest.raises(UsageError, match=f"{name.replace('_', '.')}|{name.upper()}"):
                resolved(value, as_option)


def test_every_number_among_the_settings_is_in_the_test_above():
    fields = TypeAdapter(Settings).json_schema()["properties"]
    kinds = {name: [field, *field.get("anyOf", ())] for name, field in fields.items()}
    numbers = {
        name for name, options in kinds.items() if any(one.get("type") in ("integer", "number") for one in options)
    }
    assert numbers - {"width"} == {
        *("seed", "draft_tokens", "validate_every", "max_new_tokens", "intermediate_top_k"),
        *("top_k", "temperature", "top_p", "min_p", "repetition_penalty"),
    }


@pytest.mark.parametrize("given", [1, 64, "8", "auto", "free"])
def test_a_width_is_a_number_of_rows_or_a_word(given):
    profile = load_profile("tiny")
    wanted = int(given) if given not in ("auto", "free") else given
    assert resolve_settings({"width": given}, profile)[0].width == wanted
    assert resolve_settings({}, profile, environ={"HISPEC_WIDTH": str(given)})[0].width == wanted


@pytest.mark.parametrize("given", [0, -1, 65, 2**70, "x", "1.5", True, 2.0, ""])
def test_what_is_no_width_is_refused(given):
    with pytest.raises(UsageError, match="width"):
        resolve_settings({"width": given}, load_profile("tiny"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (SETTINGS["temperature"], "the profile's, the checkpoint's, else 0"),
        (SETTINGS["seed"], "drawn"),
        (SETTINGS["tensor_parallel"], ""),
        (replace(SETTINGS["tensor_parallel"], section="decoding"), "the profile's, else off"),
    ],
)
def test_a_help_page_says_what_counts_where_nobody_says_it(setting, said):
    assert setting.otherwise == said


@pytest.mark.parametrize(
    ("name", "value", "message", "hint"),
    [
        ("dummy_agreement", "a,b", "'a,b' is not a list of shares", "give, for example, 0.55,0.75 or 2=0.75,int4=0.97"),
        ("width", "wide", "'wide' is not a width", "give auto, free, or rows from 1 to 64"),
        ("temperature", "warm", "is 'warm', which is not a number", "give a number"),
    ],
)
@pytest.mark.parametrize("source", ["option", "environment"])
def test_an_error_names_the_setting_as_its_source_does(name, value, message, hint, source):
    profile = load_profile("tiny")
    given = ({name: value}, {}) if source == "option" else ({}, {"HISPEC_" + name.upper(): value})
    with pytest.raises(UsageError) as caught:
        resolve_settings(given[0], profile, environ=given[1])
    shown = "--" + name.replace("_", "-") if source == "option" else "HISPEC_" + name.upper()
    assert caught.value.message.startswith(shown) and message in caught.value.message
    assert caught.value.hint == hint
    assert caught.value.named("it").message == caught.value.message.replace(shown, "it")
