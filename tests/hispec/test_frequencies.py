"""Reduced heads: the frequent tokens are counted from a text and chosen by a profile, and never change the output."""

import json
import os
from collections import Counter

import pytest
from transformers import AutoTokenizer

from hispec import Engine, frequencies
from hispec.errors import ProfileError, UnavailableError
from hispec.events import Drafted
from hispec.frequencies import count_tokens, frequent_ids, write_frequencies
from hispec.profile import Profile, load_profile, read_profile, with_exits

QUESTION = "Ben has 12 cards. Mei gives Ben 5 more. Then Ben loses 3 of them. How many cards does Ben have now?"


def profile_with(path=None, draft=None, intermediate=None):
    data = {"name": "p", "target": {"model": "builtin:tiny", "dtype": "float32"}}
    data |= {"draft": {"exit_layer": 1, "head": draft}, "intermediate": {"exit_layer": 2, "head": intermediate}}
    return Profile.model_validate(data | ({"frequencies": str(path)} if path else {}))


def test_tokens_are_counted_and_the_end_of_each_text_with_them(shipped_model):
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    counts = count_tokens(tokenizer, ["7 7 7\n", "7\n"], ends=[4])
    assert counts[4] == 2
    assert sum(counts.values()) == sum(len(tokenizer(t)["input_ids"]) for t in ("7 7 7\n", "7\n")) + 2


def test_the_most_frequent_come_first(tmp_path):
    write_frequencies(tmp_path / "f.json", Counter({9: 1, 5: 3, 2: 3, 7: 2}))
    assert frequent_ids(profile_with(tmp_path / "f.json"), 3) == [2, 5, 7]


def test_the_command_writes_what_a_profile_reads(tmp_path, monkeypatch, shipped_model):
    text, output = tmp_path / "text", tmp_path / "f.json"
    text.write_text("Ben has 12 cards.\n\nBen has 5.\n")
    monkeypatch.setattr("sys.argv", ["frequencies", "builtin:tiny", str(text), "-o", str(output)])
    frequencies.main()
    record = json.loads(output.read_text())
    assert record["schema"] == "hispec.frequencies/1"
    assert dict(zip(record["ids"], record["counts"], strict=True))[4] == 2
    assert record["counts"] == sorted(record["counts"], reverse=True)


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "f.json"
    write_frequencies(path, Counter({9: 1}))
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="No space left"):
        write_frequencies(path, Counter({5: 1}))
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_the_command_names_an_unreadable_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["frequencies", "builtin:tiny", str(tmp_path / "none"), "-o", str(tmp_path / "f")])
    with pytest.raises(SystemExit) as caught:
        frequencies.main()
    assert caught.value.code == 2 and "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, 3, "there are no token frequencies at"),
        ("{", 3, "is not a file of token frequencies"),
        ('{"ids": ["a"]}', 3, "is not a file of token frequencies"),
        ('{"ids": [5, 6]}', 3, "a level's head is 3, and"),
    ],
)
def test_frequencies_that_do_not_serve_are_told(tmp_path, content, words, message):
    path = tmp_path / "f.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ProfileError, match=message):
        frequent_ids(profile_with(path), words)


def test_a_profile_names_heads_and_the_file_beside_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "target: {model: builtin:tiny}\nfrequencies: f.json\n"
        "draft: {exit_layer: 1, head: 64}\nintermediate: {exit_layer: 2, head: full}\n"
    )
    profile = read_profile(path)
    assert (profile.draft.head, profile.intermediate.head) == (64, None)
    assert profile.frequencies == str(tmp_path / "f.json")
    assert with_exits(profile, 3, 5).draft.head == 64


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("{exit_layer: 1, head: 0}", "draft.head is 0"),
        ("{exit_layer: 1, head: some}", "draft.head is 'some', which is not a whole number"),
        ("{ngram: {max: 3, tokens: 4}, head: 9}", "an n-gram look-up has no head"),
    ],
)
def test_a_wrong_head_is_refused_with_its_key(tmp_path, draft, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"target: {{model: builtin:tiny}}\ndraft: {draft}\n")
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    assert message in caught.value.message


@pytest.mark.parametrize("stack", ["fused", "transformers"])
def test_reduced_heads_leave_the_output_as_it_is(stack):
    engine = Engine.from_profile(load_profile("tiny"), stack=stack, max_new_tokens=60)
    expected = engine.generate(QUESTION).token_ids
    for draft, intermediate in ((20, None), (64, 100), (30, 30), (None, 40)):
        other = engine.with_profile(profile_with(draft=draft, intermediate=intermediate))
        events = list(other.stream(QUESTION))
        assert events[-1].result.token_ids == expected
        drafted = {token for event in events if isinstance(event, Drafted) for token in event.token_ids}
        assert drafted and drafted <= set(frequent_ids(other.profile, draft or 287))
    for penalty in ({"repetition_penalty": 1.3}, {"intermediate_top_k": 3}):
        alone = engine.with_settings(mode="autoregressive", **penalty).generate(QUESTION).token_ids
        assert other.with_settings(**penalty).generate(QUESTION).token_ids == alone


def test_levels_with_as_many_words_share_one_head():
    engine = Engine.from_profile(profile_with(draft=64, intermediate=64))
    draft, intermediate, target = engine.hierarchy.levels
    assert draft.reduced is intermediate.reduced and target.reduced is None
