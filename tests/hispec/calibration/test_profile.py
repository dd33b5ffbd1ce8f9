"""Profiles that a calibration writes: they decode as it found, and no damaged one passes for whole."""

import re
from dataclasses import replace
from random import Random

import pytest
import yaml

from hispec.adaptation import adaptation_of, performance_model
from hispec.calibration.adapting import Fitter
from hispec.calibration.recording import LevelSpec
from hispec.calibration.result import CalibrationResult
from hispec.calibration.search import PLAIN, Configuration, HierarchyBuilder, Scorer, SearchResult
from hispec.calibration.timing import TimedAnswer, Timings
from hispec.calibration.writing import advice, calibrated_profile, verdict, write_profile
from hispec.errors import ProfileError
from hispec.profile import Profile, TargetSection, calibrated_elsewhere, read_profile

SINGLE = Configuration((LevelSpec("random", 2),), (6,))
STATIC = Configuration((LevelSpec("random", 1), LevelSpec("random", 3)), (2, 8))
ADAPTIVE = Configuration((LevelSpec("random", 1), LevelSpec("random", 3)))
DEFAULTS = Configuration((LevelSpec("random", 6, weights="int4"),), (), (4, 8), uncalibrated=True)
PROFILE = Profile(name="mine", target=TargetSection(model="random"), description="a: [test]")
HERE = {"date": "2026-01-01", "device": "cpu", "dtype": "float32", "stack": "fused", "threads": 2}


@pytest.fixture
def result_of(stack, recorded, costs):
    """Makes the result of a calibration that some configuration won."""

    def make(winner, faster=2.0, prompts=12, defaults=None):
        scorer = Scorer(
            HierarchyBuilder({"random": stack}, "random"), recorded, costs, (), Fitter(recorded.texts, ("margin",))
        )
        scores = [scorer.score(one, recorded.texts) for one in (PLAIN, SINGLE, STATIC, ADAPTIVE)]
        configurations = list(dict.fromkeys([winner, SINGLE, PLAIN]))
        speed = {PLAIN: 1.0, SINGLE: 1.5} | {winner: faster}
        if defaults is not None:
            configurations.append(DEFAULTS)
            speed[DEFAULTS] = defaults
        rng = Random(0)
        check = Timings(
            configurations,
            [
                TimedAnswer(at, prompt, 0, 10, 10 / speed[one] * rng.uniform(0.98, 1.02), 7)
                for at, one in enumerate(configurations)
                for prompt in range(prompts)
            ],
        )
        return CalibrationResult(winner, [], SearchResult(scores, scores), check, check, scorer, {})

    return make


@pytest.fixture
def written(result_of, tmp_path):
    def write(winner):
        path = tmp_path / "new.yaml"
        text = calibrated_profile(PROFILE, result_of(winner), HERE, "new")
        return path, text, write_profile(path, text)

    return write


@pytest.fixture
def copied(result_of, stack):
    """The result of a calibration that levels of copies won."""
    result = result_of(STATIC)
    copies = Configuration((LevelSpec("random", 1, weights="int4"), LevelSpec("random", 6, weights="int4")), (3, 9))
    quick = Configuration((LevelSpec("random", 6, weights="int8"),), (5,))
    result.winner, result.check.configurations[:] = copies, [copies, SINGLE, PLAIN, quick]
    result.check.answers += [
        replace(one, configuration=3, seconds=one.seconds * 0.9)
        for one in result.check.answers
        if one.configuration == 1
    ]
    return result


def test_levels_of_copies_are_written_with_their_weights(copied, tmp_path):
    copied.check.configurations[:] = [copied.winner, copied.check.configurations[3], PLAIN, SINGLE]
    profile = write_profile(tmp_path / "new.yaml", calibrated_profile(PROFILE, copied, HERE, "new"))
    assert (profile.draft.exit_layer, profile.draft.weights) == (1, "int4")
    assert (profile.intermediate.exit_layer, profile.intermediate.weights) == (None, "int4")
    single = profile.single_layer
    assert (single.exit_layer, single.weights, single.draft_tokens) == (None, "int8", 5)
    assert profile.calibrated["over"]["single-layer-published"]["what"] == "exit 2 drafts 6"
    assert profile.calibrated["over"]["single-layer"]["what"] == "exit 6 int8 drafts 5"
    assert "times as fast as exit 6 int8 drafts 5 (" in verdict(copied)
    assert "times as fast as exit 2 drafts 6, the best exit of the full weights (" in verdict(copied)


@pytest.mark.parametrize("winner", [PLAIN, SINGLE, STATIC, ADAPTIVE])
def test_what_is_written_says_the_winner(written, winner):
    _, text, profile = written(winner)
    assert profile.name == "new"
    assert profile.decoding.policy == (None if winner == PLAIN else "adaptive" if winner.adaptive else "static")
    assert (profile.draft is None) == (winner == PLAIN)
    if winner == STATIC:
        assert (profile.draft.exit_layer, profile.intermediate.exit_layer) == (1, 3)
        assert (profile.decoding.draft_tokens, profile.decoding.validate_every) == (2, 8)
        assert (profile.single_layer.exit_layer, profile.single_layer.draft_tokens) == (2, 6)
        assert re.search(r"1\.3\d times as fast as exit 2 drafts 6 \(1\.\d\d to 1\.\d\d\)", text)
    assert "2026-01-01" in text.splitlines()[0]
    assert profile.calibrated["tokens_per_second"]["ci95"] is not None


def test_the_adaptive_policy_knows_again_what_was_measured(written, result_of, stack):
    _, _, profile = written(ADAPTIVE)
    result = result_of(ADAPTIVE)
    hierarchy = result.scorer.builder.hierarchy(ADAPTIVE)
    known, read = result.scorer.performance_model(ADAPTIVE), performance_model(hierarchy, profile.adaptive)
    assert read.costs.draft == pytest.approx(known.costs.draft, rel=1e-4)
    assert read.throughputs == pytest.approx(known.throughputs, rel=1e-4)
    for pair, predictor in known.predictors.items():
        for margin in (0.0, 0.7, 3.0, 12.0):
            assert read.predictors[pair].log_odds((margin,)) == pytest.approx(predictor.log_odds((margin,)), abs=1e-3)
        assert read.costs.verify[pair][0] == pytest.approx(known.costs.verify[pair][0], rel=1e-4)
    assert adaptation_of(hierarchy, read) == profile.adaptive


def test_speculation_that_does_not_pay_is_said(result_of):
    assert "does not pay" in verdict(result_of(PLAIN, faster=3.0))


@pytest.mark.parametrize(
    ("winner", "defaults", "said"),
    [
        (STATIC, 2.5, "slower than hispec without a profile, 0.8"),
        (STATIC, 2.0, "not measurably faster than hispec without a profile, 1.0"),
        (PLAIN, 2.5, "slower than hispec without a profile, 0.8"),
        (STATIC, 1.6, None),
        (STATIC, None, None),
    ],
)
def test_a_winner_that_is_not_faster_than_the_defaults_is_said_with_what_to_do(result_of, winner, defaults, said):
    result = result_of(winner, defaults=defaults)
    text = calibrated_profile(PROFILE, result, HERE, "new")
    header, told = text.partition("schema:")[0], yaml.safe_load(text)["calibrated"]["over"]
    assert ("defaults" in told) == (defaults is not None)
    if defaults is not None:
        assert told["defaults"]["what"] == "n-grams of up to 4 draft 8, exit 6 int4 > target, no profile"
        assert told["defaults"]["value"] == pytest.approx(2.0 / defaults, rel=0.05)
    if said is None:
        assert advice(result) is None and "without this profile" not in header
        assert ("times as fast as hispec without a profile (1.2" in verdict(result)) == (defaults is not None)
    else:
        line = advice(result)
        assert said in line and line.endswith("use the model without this profile, --model random.")
        assert f"# {line}\n" in header and "hispec without" not in verdict(result)
        assert "of all that was timed" not in verdict(result)


def test_of_one_prompt_nobody_knows_whether_the_winner_is_faster_than_the_defaults(result_of):
    assert "not measurably faster" in advice(result_of(STATIC, prompts=1, defaults=1.6))


def test_the_name_of_a_model_does_not_end_the_line_of_advice(result_of):
    result = result_of(STATIC, defaults=2.5)
    result.scorer.builder.target = "random\ndraft: {}"
    assert "\n" not in advice(result) and "--model MODEL." in advice(result)


@pytest.mark.parametrize("prompts", [1, 2, 9, 10])
@pytest.mark.parametrize("winner", [PLAIN, SINGLE, STATIC])
def test_figures_of_few_prompts_are_not_stated_without_saying_so(result_of, winner, prompts):
    result = result_of(winner, prompts=prompts)
    text = calibrated_profile(PROFILE, result, HERE, "new")
    header, told = text.partition("schema:")[0], yaml.safe_load(text)["calibrated"]
    few = {1: "One prompt gives no interval", 10: None}.get(prompts, f"{prompts} prompts are few")
    for place in (verdict(result), header, told.get("caveat", "")):
        assert (few in place) if few else "few" not in place
    assert told["prompts_checked"] == prompts


@pytest.mark.parametrize("winner", [SINGLE, STATIC, ADAPTIVE])
def test_a_file_cut_off_anywhere_is_refused(written, winner, tmp_path):
    path, text, whole = written(winner)
    for end in range(text.index("schema"), len(text) - 2, 37):
        path.write_text(text[:end], encoding="utf-8")
        try:
            read = read_profile(path)
        except ProfileError:
            continue
        assert read == whole, text[:end]


def test_a_file_that_was_changed_where_it_was_measured_is_refused_and_elsewhere_is_not(written):
    path, text, _ = written(ADAPTIVE)
    path.write_text(text.replace("policy: adaptive", "policy: static"), encoding="utf-8")
    with pytest.raises(ProfileError, match="differ from what hispec calibrate wrote"):
        read_profile(path)
    path.write_text(text.replace("a: [test]", "another"), encoding="utf-8")
    assert read_profile(path).description == "another"


def test_another_machine_is_noticed(written):
    _, _, profile = written(STATIC)
    assert calibrated_elsewhere(profile, HERE) == []
    assert calibrated_elsewhere(profile, HERE | {"dtype": "bfloat16", "threads": 4}) == [
        "dtype float32 -> bfloat16",
        "threads 2 -> 4",
    ]
