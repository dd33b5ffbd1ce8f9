"""N-gram drafts from the outside: switched on and off, exact in every mode, and fed by earlier answers of an engine."""

import pytest

from hispec import Engine
from hispec.bench.arms import make_arms
from hispec.decoding.drafters import NgramDrafter
from hispec.decoding.ngram_cache import NgramCache
from hispec.errors import UsageError
from hispec.precedence import resolve_settings, without_effect
from hispec.profile import (
    DraftSection,
    IntermediateSection,
    NgramSection,
    Profile,
    SingleLayerSection,
    TargetSection,
    ngram_of,
)
from hispec.text import encode_prompt

QUESTION = "Ben has 12 cards. Mei gives Ben 5 more. Then Ben loses 3 of them. How many cards does Ben have now?"
OTHER = "Tom has 2 apples and buys 4 more. How many apples does Tom have now?"
MODES = ("hispec", "single-layer", "autoregressive")


@pytest.fixture(scope="module")
def engine():
    return Engine.from_profile("tiny", dtype="float32")


def names(engine):
    return [level.name for level in engine.hierarchy.levels]


@pytest.mark.parametrize("policy", ["static", "adaptive"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_n_grams_change_no_answer_in_any_mode(engine, temperature, policy):
    plain = engine.with_settings(mode="autoregressive", temperature=temperature, max_new_tokens=40, seed=3)
    expected = [plain.generate(prompt).token_ids for prompt in (QUESTION, OTHER, QUESTION)]
    for mode in MODES:
        drafting = plain.with_settings(mode=mode, policy=policy, lookup=True)
        assert [drafting.generate(prompt).token_ids for prompt in (QUESTION, OTHER, QUESTION)] == expected


def test_lookup_adds_n_grams_to_levels_without_them_and_takes_them_away(engine):
    assert names(engine) == ["draft", "intermediate", "target"]
    drafting = engine.with_settings(lookup=True)
    assert names(drafting) == ["guesses", "draft", "intermediate", "target"]
    assert names(drafting.with_settings(mode="single-layer")) == ["guesses", "draft", "target"]
    assert names(drafting.with_settings(mode="autoregressive")) == ["target"]
    assert names(drafting.with_settings(lookup=False)) == ["draft", "intermediate", "target"]
    own = NgramSection(max=2, tokens=3)
    profile = engine.profile.model_copy(update={"draft": engine.profile.draft.model_copy(update={"ngram": own})})
    said = engine.with_profile(profile)
    assert names(said)[0] == "guesses" and said.hierarchy.ngrams.longest == 2
    assert said.with_settings(lookup=True).hierarchy.ngrams.longest == 2
    assert names(said.with_settings(lookup=False)) == ["draft", "intermediate", "target"]


def test_what_is_left_without_n_grams_decodes(engine):
    ngrams = DraftSection(ngram=NgramSection(max=3, tokens=4))
    alone = engine.profile.model_copy(update={"draft": ngrams, "intermediate": None, "single_layer": None})
    under = alone.model_copy(update={"intermediate": engine.profile.intermediate})
    expected = engine.with_settings(mode="autoregressive", max_new_tokens=20).generate(QUESTION).token_ids
    for profile, left in ((alone, ["target"]), (under, ["intermediate", "target"])):
        for mode in ("hispec", "single-layer"):
            without = engine.with_profile(profile).with_settings(lookup=False, mode=mode, max_new_tokens=20)
            assert names(without) == (left if mode == "hispec" else ["target"])
            assert without.generate(QUESTION).token_ids == expected


def test_a_profile_says_what_is_drafted():
    plain = Profile(name="p", target=TargetSection(model="m"))
    both = plain.model_copy(
        update={
            "draft": DraftSection(exit_layer=1, ngram=NgramSection(max=2, tokens=3)),
            "intermediate": IntermediateSection(exit_layer=2),
            "single_layer": SingleLayerSection(exit_layer=2, draft_tokens=3),
        }
    )
    assert ngram_of(both, "hispec", None) == NgramSection(max=2, tokens=3)
    assert ngram_of(both, "single-layer", None) is None is ngram_of(both, "autoregressive", True)
    assert ngram_of(both, "single-layer", True) == ngram_of(plain, "hispec", True) == NgramSection(max=4, tokens=8)
    assert ngram_of(plain, "hispec", None) is None is ngram_of(both, "hispec", False)


def test_a_lookup_that_nothing_is_drafted_with_is_told_of():
    profile = Profile(name="p", target=TargetSection(model="m"))
    asked = {"mode": "autoregressive", "lookup": True}
    assert any("lookup changes nothing" in told for told in without_effect(*resolve_settings(asked, profile)))
    for asked in ({"mode": "autoregressive", "lookup": False}, {"lookup": True}):
        assert not any("lookup" in told for told in without_effect(*resolve_settings(asked, profile)))


def only_n_grams(engine):
    (arm,) = make_arms(["recycling"], engine.with_settings(max_new_tokens=60))
    return arm


def test_an_engine_finds_what_it_answered_before(engine):
    drafting = only_n_grams(engine).engine
    first, again = drafting.generate(QUESTION), drafting.generate(QUESTION)
    assert again.token_ids == first.token_ids
    assert again.stats.target_passes < first.stats.target_passes / 2
    fresh = drafting.with_settings(seed=0)
    assert fresh.generate(QUESTION).stats.target_passes == first.stats.target_passes, "another engine knew the answer"


def test_an_answer_that_was_left_is_known_as_far_as_it_went(engine):
    drafting, count = only_n_grams(engine).engine, 0
    whole = only_n_grams(engine).engine.generate(QUESTION)
    events = drafting.stream(QUESTION)
    while count < 20:
        count += len(getattr(next(events), "token_ids", ()))
    events.close()
    assert drafting.generate(QUESTION).stats.target_passes < whole.stats.target_passes


def test_the_arm_recycling_has_n_grams_alone_and_forgets_before_a_repeat(engine):
    arm = only_n_grams(engine)
    assert names(arm.engine) == ["guesses", "target"]
    ids = [encode_prompt(engine.tokenizer, prompt) for prompt in (QUESTION, OTHER)]
    passes = [arm.answer(prompt, 60, (), seed=0).stats.target_passes for prompt in ids * 2]
    assert passes[:2] == passes[2:]
    assert passes[0] < 60


def test_logits_of_rejected_rows_are_recycled(engine, monkeypatch):
    """Without what levels say after rejected tokens, and of them, more passes are needed."""
    drafting = only_n_grams(engine).engine
    passes = sum(drafting.generate(prompt).stats.target_passes for prompt in (QUESTION, OTHER))
    monkeypatch.setattr(NgramCache, "record_argmax", lambda *_: None)
    monkeypatch.setattr(NgramDrafter, "rejected", lambda *_: None)
    bare = only_n_grams(engine).engine
    assert sum(bare.generate(prompt).stats.target_passes for prompt in (QUESTION, OTHER)) > passes


def test_a_value_that_is_neither_true_nor_false_is_refused_in_words():
    profile = Profile(name="p", target=TargetSection(model="m"))
    with pytest.raises(UsageError, match="HISPEC_LOOKUP is 'maybe', which is not true or false"):
        resolve_settings({}, profile, environ={"HISPEC_LOOKUP": "maybe"})
