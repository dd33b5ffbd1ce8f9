"""Profiles are found where they should be, and refused with the key at fault."""

import hashlib
import json
from datetime import date
from pathlib import Path

import pytest

from hispec.errors import ProfileError
from hispec.profile import (
    DraftSection,
    NgramSection,
    Profile,
    SamplingSection,
    TargetSection,
    calibration_digest,
    check_depths,
    load_profile,
    models_of,
    parse_profile,
    profile_for_model,
    read_profile,
    shipped_folder,
    to_yaml,
    with_exits,
    without_copies,
)
from hispec.profile import files as profiles

GOOD = """
schema: 1
name: good
target: {model: some/model}
draft: {exit_layer: 2}
intermediate: {exit_layer: 4}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_good_profile_is_read(write):
    profile = read_profile(write(GOOD))
    assert (profile.name, profile.target.model) == ("good", "some/model")
    assert (profile.draft.exit_layer, profile.intermediate.exit_layer) == (2, 4)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (GOOD + "decodin: {}", "unknown key decodin", "did you mean decoding?"),
        (GOOD + "decoding: {draft_token: 3}", "unknown key decoding.draft_token", "draft_tokens"),
        (GOOD + "decoding: {draft_tokens: 0}", "decoding.draft_tokens is 0", "at least 1"),
        (GOOD + "decoding: {draft_tokens: '3'}", "decoding.draft_tokens is '3'", "a whole number"),
        (GOOD + "decoding: {draft_tokens: yes}", "decoding.draft_tokens is True", "quote"),
        (GOOD + "decoding: {policy: magic}", "decoding.policy is 'magic'", "'static'"),
        (GOOD + "sampling: {temperature: 1e-3}", "sampling.temperature is '1e-3'", "1.0e-3"),
        (GOOD + "sampling: {temperature: -0.7}", "sampling.temperature is -0.7", "at least 0"),
        (GOOD + "sampling: {temperature: .inf}", "sampling.temperature is inf", "at most"),
        (GOOD + "sampling: {top_p: 0.0}", "sampling.top_p is 0.0", "more than 0"),
        (GOOD + "sampling: {top_p: 1.5}", "sampling.top_p is 1.5", "at most 1"),
        (GOOD.replace("exit_layer: 2", "exit_layer: 2, model: a/b"), "not both", "mend"),
        (GOOD + "chat_template: no", "chat_template is False", "quote"),
        (GOOD.replace("schema: 1", "schema: 2"), "schema is 2", "1"),
        (GOOD.replace("{model: some/model}", "{revision: main}"), "target.model is missing", "add target.model"),
        (GOOD.replace("{model: some/model}", "some/model"), "target is 'some/model'", "section of keys"),
        (GOOD.replace("exit_layer: 2", "exit_layer: 4"), "deeper than the draft exit", "mend"),
        (GOOD.replace("{exit_layer: 2}", "{}"), "give an exit_layer, weights, a model", "mend"),
        (GOOD.replace("draft: {exit_layer: 2}", ""), "needs a draft level", "mend"),
        ("target: {model: [", "line 1", "mend that line"),
        ("", "holds no keys", "target"),
        ("no: 1\n", "not text", "quote"),
        (b"name: \xff\xfe", "UTF-8", "UTF-8"),
        (GOOD + "name: other", "line 7 gives name again, which line 3", "keep one"),
        (GOOD.replace("exit_layer: 2", "exit_layer: 2, 'exit_layer': 3"), "gives exit_layer again", "keep one"),
        (GOOD + "calibrated:\n  over: {a: 1,\n    a: 1}", "line 9 gives a again, which line 8", "keep one"),
    ],
)
def test_a_bad_profile_is_refused_with_its_key_and_the_hint(write, text, message, hint):
    with pytest.raises(ProfileError) as caught:
        read_profile(write(text))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ProfileError) as caught:
        load_profile("tinny")
    assert "did you mean tiny?" in caught.value.hint


def test_a_users_own_profile_replaces_its_namesake(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "user_folder", lambda: tmp_path)
    (tmp_path / "tiny.yaml").write_text(GOOD.replace("name: good", "name: tiny"))
    assert load_profile("tiny").target.model == "some/model"


def test_a_relative_model_is_meant_relative_to_the_file(write):
    path = write(GOOD.replace("some/model", "./weights"))
    assert read_profile(path).target.model == str(path.parent / "weights")


def test_other_relative_models_are_too_and_all_are_found_from_anywhere(write, monkeypatch, tmp_path):
    text = GOOD.replace("{exit_layer: 2}", "{model: ../small}").replace(
        "{exit_layer: 4}", "{model: ./mid, exit_layer: 4}"
    )
    write(text.replace("some/model", "./weights"))
    monkeypatch.chdir(tmp_path)
    profile = read_profile(Path("mine.yaml"))
    models = [level.model for level in (profile.target, profile.draft, profile.intermediate)]
    assert models == [str(tmp_path / name) for name in ("weights", "../small", "mid")]


AWKWARD = Profile(
    name="no",
    description="two  blanks\t, 'quotes': # and \u2028 and é",
    target=TargetSection(model="~/a b", revision="0123", dtype="float16"),
    sampling=SamplingSection(temperature=1e-4, top_p=1e-300),
    chat_template="{{ a }}\r\n  \x1b[31m\u202e \ud800 \n\n",
    calibrated={"none": None, "date": date(2026, 1, 2), "number": "1e3", "list": [[], {}], "large": 1e22},
)


@pytest.mark.parametrize("unicode", [True, False])
def test_a_profile_as_yaml_reads_back_equal(unicode):
    shipped = [read_profile(path) for _, path in profiles.list_profiles()]
    assert len(shipped) > 5
    for profile in [*shipped, AWKWARD]:
        assert parse_profile(to_yaml(profile, unicode=unicode), Path("/elsewhere/other.yaml")) == profile


def test_the_shipped_profiles_are_valid():
    shipped = {name: read_profile(path) for name, path in profiles.list_profiles()}
    assert shipped["tiny"].target.model == "builtin:tiny"


def test_exits_too_deep_for_the_model_are_refused(write):
    profile = read_profile(write(GOOD))
    check_depths(profile, "some/model", 5)
    with pytest.raises(ProfileError, match=r"intermediate.exit_layer is 4, and some/model has 4 layers"):
        check_depths(profile, "some/model", 4)


def test_the_exit_of_single_layer_is_held_to_the_targets_depth_alone(write):
    profile = read_profile(write(f"{GOOD}\nsingle_layer: {{exit_layer: 6, draft_tokens: 4}}\n"))
    check_depths(profile, "some/model", 7)
    check_depths(profile, "other/model", 3)
    with pytest.raises(ProfileError, match=r"single_layer.exit_layer is 6, and some/model has 6 layers") as caught:
        check_depths(profile, "some/model", 6)
    assert "from 1 to 5" in caught.value.hint


def test_single_layer_with_an_exit_of_its_own_reads_no_draft_model(write):
    text = GOOD.replace("{exit_layer: 2}", "{model: other/model}")
    for own, models in (
        ("", ["some/model", "other/model"]),
        ("single_layer: {exit_layer: 2, draft_tokens: 4}", ["some/model"]),
    ):
        profile = read_profile(write(f"{text}\n{own}\n"))
        assert list(models_of(profile, "single-layer")) == models
        assert list(models_of(profile, "hispec")) == ["some/model", "other/model"]


def test_another_models_last_layer_is_an_exit_too(write):
    profile = read_profile(write(GOOD.replace("{exit_layer: 4}", "{model: other/model, exit_layer: 4}")))
    check_depths(profile, "some/model", 3)
    check_depths(profile, "other/model", 4)
    with pytest.raises(ProfileError, match=r"other/model has 3 layers"):
        check_depths(profile, "other/model", 3)


def test_other_exits_keep_the_n_grams_of_a_profile(write):
    profile = read_profile(write(GOOD.replace("{exit_layer: 2}", "{exit_layer: 2, ngram: {max: 4, tokens: 8}}")))
    assert with_exits(profile, 3, None).draft.ngram.tokens == 8


def test_other_exits_replace_a_profiles_own(write):
    profile = with_exits(read_profile(write(GOOD)), 1, None)
    assert (profile.draft.exit_layer, profile.intermediate.exit_layer) == (1, 4)
    with pytest.raises(ProfileError, match="deeper"):
        with_exits(profile, 7, None)


def test_any_model_drafts_with_n_grams_and_a_4_bit_copy():
    profile = profile_for_model("org/model", 30, None, None)
    assert (profile.draft.ngram.max, profile.draft.weights, profile.draft.exit_layer) == (4, "int4", None)
    assert profile.intermediate is None and profile.assumed


@pytest.mark.parametrize(("depth", "exit_layer"), [(3, 1), (16, 2), (32, 4), (80, 10)])
def test_a_model_trained_for_early_exit_drafts_with_an_exit_and_verifies_with_its_copy(depth, exit_layer):
    profile = profile_for_model("org/LayerSkip-model", depth, None, None)
    assert (profile.draft.exit_layer, profile.draft.weights) == (exit_layer, "int4")
    assert (profile.intermediate.exit_layer, profile.intermediate.weights) == (None, "int4")
    assert profile == profile_for_model("org/LayerSkip-model", depth, exit_layer, None), "an exit that is given"


def test_two_exits_read_the_models_own_weights():
    profile = profile_for_model("org/model", 16, 3, 5)
    assert [profile.draft.exit_layer, profile.intermediate.exit_layer] == [3, 5]
    assert not (profile.draft.weights or profile.intermediate.weights or profile.assumed)


def test_where_there_are_no_copies_exits_and_n_grams_are_left():
    ordinary, exits = (without_copies(profile_for_model("org/model", 16, draft, None)) for draft in (None, 2))
    assert ordinary.draft == DraftSection(ngram=NgramSection(max=4, tokens=8))
    assert (exits.draft.exit_layer, exits.draft.weights, exits.intermediate) == (2, None, None)


def test_a_key_of_older_profiles_is_ignored_with_a_word(write):
    with pytest.warns(UserWarning, match=r"decoding\.verification is ignored"):
        profile = read_profile(write(GOOD + "decoding: {verification: blocks, draft_tokens: 3}"))
    assert profile.decoding.draft_tokens == 3


def test_the_older_name_of_verification_costs_is_read_with_the_same_digest():
    text = (shipped_folder() / "tiny-adaptive.yaml").read_text()
    assert "verify_ms:" in text
    older = parse_profile(text.replace("verify_ms:", "judge_ms:"), Path("older.yaml"))
    newer = parse_profile(text, Path("newer.yaml"))
    assert older.adaptive == newer.adaptive and older.adaptive.verify_ms
    assert calibration_digest(older) == calibration_digest(newer)
    assert "verify_ms" in to_yaml(older)


def test_digests_of_older_versions_hold():
    adaptive = {"draft_ms": {"1": 1.0}, "judge_ms": {"1 > 2": [1.0] * 6}}
    made = Profile.model_validate({"name": "x", "target": {"model": "m"}, "adaptive": adaptive})
    assert (
        calibration_digest(made)
        == hashlib.sha256(json.dumps({"adaptive": adaptive}, sort_keys=True).encode()).hexdigest()
    )
