"""The engine from Python: events, text, verification, other settings on the same weights."""

import json
from dataclasses import replace
from threading import Thread

import pytest
import yaml
from transformers import AutoTokenizer

from hispec import Engine
from hispec.decoding.engine import DecodeLoop
from hispec.errors import LosslessnessError, UsageError
from hispec.events import Committed, Drafted, Finished, Prefilled
from hispec.profile import load_profile, with_exits
from tests.support import random_model

QUESTION = "Ben has 12 cards. Mei gives Ben 5 more. Then Ben loses 3 of them. How many cards does Ben have now?"


@pytest.fixture(scope="module")
def engine():
    return Engine.from_profile("tiny", max_new_tokens=80)


def test_generate_answers_and_stream_tells_how(engine):
    answer = engine.generate(QUESTION)
    events = list(engine.stream(QUESTION))
    assert isinstance(events[0], Prefilled) and isinstance(events[-1], Finished)
    assert any(isinstance(event, Drafted) for event in events)
    assert "".join(event.text for event in events if isinstance(event, Committed)) == answer.text
    assert events[-1].result.token_ids == answer.token_ids


def test_other_settings_on_the_same_weights(engine):
    alone = engine.with_settings(mode="autoregressive")
    assert alone.stacks is engine.stacks
    assert [len(alone.hierarchy), len(engine.hierarchy)] == [1, 3]
    assert alone.generate(QUESTION).token_ids == engine.generate(QUESTION).token_ids
    with pytest.raises(UsageError, match="--draft-tokens is 0"):
        engine.with_settings(draft_tokens=0)


def test_token_ids_are_gone_on_after_as_a_prompt_is(engine):
    whole = engine.generate(QUESTION)
    *_, end = engine.stream_ids(whole.prompt_ids)
    assert end.result.token_ids == whole.token_ids
    *_, end = engine.stream_ids(whole.prompt_ids, max_new_tokens=3)
    assert (end.result.token_ids, end.finish_reason) == (whole.token_ids[:3], "length")
    with pytest.raises(UsageError, match="not in the vocabulary"):
        list(engine.stream_ids([10**6]))
    with pytest.raises(UsageError, match="holds 2048"):
        engine.stream_ids([1] * 2048)


def test_other_sampling_keeps_drafting_from_the_same_cache():
    engine = Engine.from_profile("tiny", lookup=True, temperature=1.0, policy="static", max_new_tokens=24)
    assert engine.with_sampling() is engine
    first = engine.with_sampling(temperature=0.0).generate(QUESTION)
    again, alone = (make(temperature=0.0).generate(QUESTION) for make in (engine.with_sampling, engine.with_settings))
    assert first.token_ids == again.token_ids == alone.token_ids
    accepted = [answer.stats.levels[0].accepted for answer in (first, again, alone)]
    assert accepted[1] > accepted[0] == accepted[2]
    by_way = engine.with_sampling(mode="autoregressive").with_sampling(mode="hispec", temperature=0.0, lookup=True)
    assert by_way.generate(QUESTION).stats.levels[0].accepted >= accepted[1]


def test_stopping_early_leaves_the_engine_usable(engine):
    expected = engine.generate(QUESTION).token_ids
    for count in range(1, 8):
        events = engine.stream(QUESTION)
        for _ in range(count):
            next(events)
        events.close()
    assert engine.generate(QUESTION).token_ids == expected


def test_interrupting_keeps_what_was_validated(engine):
    whole = engine.generate(QUESTION)
    events = []
    for event in engine.stream(QUESTION):
        events.append(event)
        if len(events) == 12:
            engine.interrupt()
    generation = events[-1].result
    assert generation.finish_reason == "interrupted"
    assert 0 < len(generation.token_ids) < len(whole.token_ids)
    assert whole.text.startswith(generation.text)
    assert engine.generate(QUESTION).finish_reason == "eos"  # the next answer is not interrupted


def test_a_stop_text_ends_the_answer_wherever_it_begins(engine):
    whole = engine.generate(QUESTION)
    for start in range(0, len(whole.text) - 4, 3):
        stop = whole.text[start : start + 4]
        answer = engine.generate(QUESTION, stop=[stop, "never written"])
        assert (answer.text, answer.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        shorter = engine.tokenizer.decode(answer.token_ids[:-1])
        assert stop not in shorter  # no token beyond the one that completes it


def test_no_token_after_a_stop_text_is_kept(engine):
    """Not in the answer, nor in its events, although the target validates many tokens at once."""
    whole = engine.generate(QUESTION)
    ends = set()
    for start in range(0, len(whole.text) - 2):
        stop = whole.text[start : start + 2]
        *events, last = engine.stream(QUESTION, stop=[stop])
        ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
        assert ids == last.result.token_ids == whole.token_ids[: len(ids)]
        assert stop not in engine.tokenizer.decode(ids[:-1])
        ends.add(len(ids))
    assert len(ends) > 10


def test_a_stop_text_may_be_a_special_token(engine):
    """A checkpoint may not name the end of a turn among its ends."""
    endless = Engine(engine.profile, engine.settings, replace(engine.models, eos_ids=frozenset()))
    whole = engine.generate(QUESTION)
    assert len(endless.generate(QUESTION).token_ids) > len(whole.token_ids)
    for shown in ("", whole.text[-1:], whole.text[-4:]):
        answer = endless.generate(QUESTION, stop=[f"{shown}<|end|>"])
        assert (answer.token_ids, answer.finish_reason) == (whole.token_ids, "stop")
        assert answer.text == whole.text.removesuffix(shown)
        *events, _ = endless.stream(QUESTION, stop=[f"{shown}<|end|>"])
        assert "".join(event.text for event in events if isinstance(event, Committed)) == answer.text


def test_interrupting_before_the_first_step_counts(engine):
    events = engine.stream(QUESTION)
    engine.interrupt()
    *_, last = events
    assert (last.finish_reason, last.result.token_ids) == ("interrupted", [])


def test_a_single_stop_text_is_one_text(engine):
    whole = engine.generate(QUESTION)
    assert engine.generate(QUESTION, stop="####").text == whole.text[: whole.text.index("####")]


def test_two_answers_at_once_on_one_engine_are_refused(engine):
    first = engine.stream(QUESTION)
    next(first)
    expected = engine.generate(QUESTION).token_ids
    with pytest.raises(UsageError, match="another answer was started"):
        list(first)
    assert engine.generate(QUESTION).token_ids == expected


def test_verify_accepts_the_targets_own_and_nothing_else(engine, monkeypatch):
    answer = engine.generate(QUESTION)
    engine.check_lossless(answer)
    assert answer.lossless is True
    answer.token_ids[5] += 1
    with pytest.raises(LosslessnessError, match="token 5 differs"):
        engine.check_lossless(answer)
    assert answer.lossless is False


def test_verify_notices_an_answer_cut_short_or_too_long(engine):
    answer = engine.generate(QUESTION)
    answer.token_ids.append(7)
    with pytest.raises(LosslessnessError, match=f"token {len(answer.token_ids) - 1} differs"):
        engine.check_lossless(answer)


def test_verify_notices_an_end_that_is_not_the_targets(engine):
    answer = engine.generate(QUESTION)
    del answer.token_ids[-3:]
    with pytest.raises(LosslessnessError, match=f"token {len(answer.token_ids)} differs"):
        engine.check_lossless(answer)
    answer.finish_reason = "stop"  # a stop text may end it anywhere
    engine.check_lossless(answer)
    assert answer.lossless


def test_a_rule_that_accepts_everything_is_found_out(engine, monkeypatch):
    shallow = Engine.from_profile(with_exits(load_profile("tiny"), 1, None), max_new_tokens=80)
    monkeypatch.setattr(DecodeLoop, "accepted", lambda self, level, waiting, *_: len(waiting))
    answer = shallow.generate(QUESTION)
    with pytest.raises(LosslessnessError):
        shallow.check_lossless(answer)  # with the target alone, which verifies nothing


def test_a_prompt_fills_the_context_exactly_or_is_refused(engine):
    room = engine.context
    text = "a" + " a" * (room - 2)
    assert len(engine.tokenizer(text)["input_ids"]) == room - 1
    answer = engine.generate(text, raw=True)
    assert (len(answer.token_ids), answer.finish_reason) == (1, "length")
    longer = engine.generate("a" + " a" * (room - 21), raw=True)
    assert len(longer.token_ids) == 20 or longer.finish_reason == "eos"
    with pytest.raises(UsageError, match=f"has {room:,} tokens"):
        engine.generate(text + " a", raw=True)


@pytest.fixture
def small_model(tmp_path, shipped_model):
    """A two-layer model with the shipped model's tokenizer, and a padded vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    model = random_model("llama", layers=2, vocab=len(tokenizer) + 13)
    model.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def medium_model(tmp_path, shipped_model):
    """A three-layer model of another family with the same tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    model = random_model("qwen3", layers=3, vocab=len(tokenizer), hidden_size=48)
    model.save_pretrained(tmp_path / "medium")
    tokenizer.save_pretrained(tmp_path / "medium")
    return tmp_path / "medium"


def profile_with(tmp_path, **levels):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"target": {"model": "builtin:tiny", "dtype": "float32"}, **levels}))
    return str(path)


@pytest.mark.parametrize(
    ("draft", "intermediate", "names"),
    [
        ({"model": "SMALL"}, {"exit_layer": 4}, ["draft", "intermediate"]),
        ({"exit_layer": 2, "ngram": {"max": 3, "tokens": 4}}, {"exit_layer": 4}, ["guesses", "draft", "intermediate"]),
        ({"ngram": {"max": 3, "tokens": 4}}, None, ["guesses"]),
        ({"ngram": {"max": 3, "tokens": 4}}, {"model": "SMALL", "exit_layer": 1}, ["guesses", "intermediate"]),
        ({"exit_layer": 1}, {"model": "builtin:tiny", "exit_layer": 4}, ["draft", "intermediate"]),
        ({"model": "SMALL"}, {"model": "MEDIUM"}, ["draft", "intermediate"]),
    ],
)
def test_profiles_of_every_kind_decode_what_the_target_does(
    engine, tmp_path, small_model, medium_model, draft, intermediate, names
):
    text = yaml.safe_dump({"draft": draft} | ({"intermediate": intermediate} if intermediate else {}))
    levels = yaml.safe_load(text.replace("SMALL", str(small_model)).replace("MEDIUM", str(medium_model)))
    other = Engine.from_profile(profile_with(tmp_path, **levels), max_new_tokens=80)
    answer = other.generate(QUESTION)
    assert [level.name for level in answer.stats.levels] == names
    assert answer.token_ids == engine.generate(QUESTION).token_ids


def test_a_model_of_another_vocabulary_is_refused_with_the_first_differing_id(tmp_path, small_model):
    data = json.loads((small_model / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    swapped = {id_: token for token, id_ in vocab.items()}
    vocab[swapped[40]], vocab[swapped[41]] = 41, 40
    (small_model / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="do not share a vocabulary: id 40 is"):
        Engine.from_profile(profile_with(tmp_path, draft={"model": str(small_model)}))


def test_a_mode_whose_model_is_not_loaded_is_refused(tmp_path, small_model):
    path = profile_with(tmp_path, draft={"model": str(small_model)})
    alone = Engine.from_profile(path, mode="autoregressive")
    with pytest.raises(UsageError, match="which is not loaded"):
        alone.with_settings(mode="hispec")


@pytest.mark.parametrize("seed", [4, None])
def test_a_sampled_answer_is_verified_with_its_own_seed(engine, seed):
    sampled = engine.with_settings(temperature=1.0, seed=seed)
    answer = sampled.generate(QUESTION)
    sampled.check_lossless(answer)
    assert answer.lossless
    answer.token_ids[3] ^= 1
    with pytest.raises(LosslessnessError, match="token 3 differs"):
        sampled.check_lossless(answer)


def test_a_seed_gives_the_same_text_in_every_mode_and_under_every_policy(engine):
    found = set()
    for changes in (
        {},
        {"mode": "single-layer"},
        {"mode": "autoregressive"},
        {"policy": "adaptive"},
        {"draft_tokens": 4, "validate_every": 5},
        {"intermediate_top_k": 3},
    ):
        found.add(
            tuple(engine.with_settings(temperature=1.0, top_p=0.95, seed=9, **changes).generate(QUESTION).token_ids)
        )
    assert len(found) == 1


def test_two_threads_on_one_engine_are_both_right_or_told(engine):
    """Answers overlap: the later one takes the caches, and the earlier one fails before it computes with them."""
    expected = {prompt: engine.generate(prompt).token_ids for prompt in (QUESTION, "Tom has 12 marbles and loses 5.")}
    found: list[bool] = []

    def ask(prompt):
        try:
            found.append(engine.generate(prompt).token_ids == expected[prompt])
        except UsageError as error:
            found.append("another answer was started" in str(error))

    for _ in range(64):
        threads = [Thread(target=ask, args=(prompt,)) for prompt in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 128 and all(found)
    assert engine.generate(QUESTION).token_ids == expected[QUESTION]


def test_mode_single_layer_drafts_at_the_exit_that_it_was_tuned_for(engine):
    alone = engine.with_settings(mode="single-layer")
    tuned = engine.profile.single_layer
    assert [level.exit_layer for level in alone.hierarchy.levels] == [tuned.exit_layer, 16]
    other = engine.with_profile(with_exits(engine.profile, 3, 5)).with_settings(mode="single-layer")
    assert [level.exit_layer for level in other.hierarchy.levels] == [3, 16]
