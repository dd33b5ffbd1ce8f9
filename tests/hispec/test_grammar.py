"""Structured output on the shipped model: every answer matches, and is what the target alone writes under the same mask."""

import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from hispec import Engine
from hispec.decoding.hierarchy import Hierarchy
from hispec.errors import LosslessnessError, UsageError
from hispec.events import Committed
from hispec.grammar import MAX_CHARACTERS, Grammar
from hispec.grammar_mask import Grammars

QUESTION = "Ben has 12 cards. Mei gives Ben 5 more. Then Ben loses 3 of them. How many cards does Ben have now?"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SUM = r"""
start: number (" + " number){1,3} " = " number
number: /[1-9][0-9]?/
"""


@pytest.fixture(scope="module")
def engine():
    return Engine.from_profile("tiny", max_new_tokens=300)


@pytest.fixture(scope="module")
def schemas():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        from schemas import schemas
    finally:
        sys.path.remove(folder)
    return schemas(20)


def test_twenty_schemas_are_answered_in_json_that_fits_and_with_the_target_s_own_ids(engine, schemas):
    for number, schema in enumerate(schemas):
        grammar = Grammar.json_schema(schema)
        rule = {"temperature": 0.9, "seed": number} if number % 2 else {}
        settings = ({"policy": "static"}, {"lookup": True}, {"mode": "single-layer"})[number % 3]
        answer = engine.with_settings(**rule, **settings).generate(QUESTION, grammar=grammar)
        assert answer.complete and answer.finish_reason == "eos", (number, answer.text)
        jsonschema.validate(json.loads(answer.text), schema)
        alone = engine.with_settings(**rule, mode="autoregressive").generate(QUESTION, grammar=grammar)
        assert answer.token_ids == alone.token_ids, number


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar.regex(r"(yes|no), [a-z]{3,9}\."), r"(yes|no), [a-z]{3,9}\."),
        (Grammar.lark(SUM), r"[1-9][0-9]?( \+ [1-9][0-9]?){1,3} = [1-9][0-9]?"),
        (Grammar.regex("[äöü]{4}🙂"), "[äöü]{4}🙂"),
    ],
)
def test_expressions_and_grammars_hold_from_the_first_character_to_the_last(engine, grammar, pattern):
    answer = engine.generate(QUESTION, grammar=grammar)
    assert re.fullmatch(pattern, answer.text) and answer.complete


def test_the_mask_depends_on_the_text_alone_and_not_on_what_was_rejected(engine):
    grammar, prompt = Grammar.json_schema(PERSON), [5, 6, 7]
    ids = engine.generate(QUESTION, grammar=grammar).token_ids
    kept = engine.models.grammars.mask(grammar, len(prompt))
    rng = torch.Generator().manual_seed(0)
    for at in [*range(len(ids)), *torch.randint(len(ids), (60,), generator=rng).tolist()]:
        text = prompt + ids[:at]
        fresh = engine.models.grammars.mask(grammar, len(prompt)).allowed(text)
        assert torch.equal(kept.allowed(text), fresh) and fresh[ids[at]]
        allowed = fresh.nonzero()[:, 0].tolist()
        other = allowed[int(torch.randint(len(allowed), (), generator=rng))]
        kept.allowed([*text, other])  # a draft that is taken back
        forbidden = int((~fresh).nonzero()[0])
        following = ids[at : min(at + 3, len(ids) - 1)]
        assert kept.fitting(text, ids[at : at + 3]) == len(following)
        assert kept.fitting(text, [forbidden, 1]) == 0


def test_verification_decodes_under_the_same_grammar(engine):
    answer = engine.generate(QUESTION, grammar=Grammar.json_schema(PERSON))
    engine.check_lossless(answer)
    assert answer.lossless
    answer.token_ids[3] += 1
    with pytest.raises(LosslessnessError, match="token 3 differs"):
        engine.check_lossless(answer)


def test_an_answer_cut_off_is_told_apart_from_a_complete_one(engine):
    short = engine.with_settings(max_new_tokens=6).generate(QUESTION, grammar=Grammar.json_schema(PERSON))
    assert (short.finish_reason, short.complete) == ("length", False)
    assert short.to_record()["complete"] is False
    whole = engine.with_settings(max_new_tokens=2).generate(QUESTION, grammar=Grammar.regex("a|b"))
    assert (whole.finish_reason, whole.complete) == ("eos", True)
    assert "complete" not in engine.generate(QUESTION).to_record()
    exactly = engine.with_settings(max_new_tokens=1).generate(QUESTION, grammar=Grammar.regex("a|b"))
    assert (exactly.finish_reason, exactly.complete) == ("length", True)


def test_log_probabilities_before_and_after_the_mask(engine):
    answer = engine.generate(QUESTION, grammar=Grammar.regex("x"), logprobs=3)
    first, end = answer.logprobs
    assert first.text == "x" and first.logprob < -1 and first.sampling_logprob == 0
    assert len(first.top) == 3 and [(one.text, one.logprob) for one in first.sampling_top] == [("x", 0)]
    assert end.token_id in engine.eos_ids
    assert [one["token_id"] for one in answer.to_record()["logprobs"]] == answer.token_ids


def test_log_probabilities_end_where_a_stop_text_does(engine):
    whole = engine.generate(QUESTION, logprobs=0)
    events = list(engine.stream(QUESTION, stop=["="], logprobs=0))
    told = [one for event in events if isinstance(event, Committed) for one in event.logprobs]
    result = events[-1].result
    assert 0 < len(result.token_ids) < len(whole.token_ids)
    assert [one.token_id for one in told] == [one.token_id for one in result.logprobs] == result.token_ids


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (lambda: Grammar.json_schema("{"), "the JSON schema is not JSON"),
        (lambda: Grammar.json_schema("[1]"), "a JSON schema is an object, not [1]"),
        (lambda: Grammar.json_schema("[" * 100_000), "nested too deeply"),
        (lambda: Grammar.json_schema({"type": "objekt"}), "Invalid type: objekt"),
        (lambda: Grammar.json_schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
        (lambda: Grammar.json_schema({"$ref": "http://example.com/x"}), "http://example.com/x"),
        (lambda: Grammar.json_schema(False), "schema is false"),
        (lambda: Grammar.json_schema({"type": "string", "minLength": 3, "maxLength": 2}), "Unsatisfiable"),
        (lambda: Grammar.json_schema({"const": "x" * MAX_CHARACTERS}), f"the most are {MAX_CHARACTERS}"),
        (lambda: Grammar.regex("[a-z"), "unclosed character class"),
        (lambda: Grammar.regex("(?=x)y"), "look-around"),
        (lambda: Grammar.regex("\ud800"), "not UTF-8"),
        (lambda: Grammar.lark("start: nothing"), 'unknown name: "nothing"'),
        (lambda: Grammar.lark("start: start"), "no text can match it"),
        (lambda: Grammar.lark("not a grammar"), "the grammar cannot be used"),
    ],
)
def test_what_cannot_be_matched_is_refused_before_anything_is_run(engine, grammar, message):
    with pytest.raises(UsageError) as refused:
        engine.stream(QUESTION, grammar=grammar())
    assert message in refused.value.message and "\n" not in refused.value.message


def test_a_grammar_that_explodes_ends_the_answer_with_an_error_and_not_the_process(engine):
    rules = "".join(f'a{i}: "x" b{i}\nb{i}: "y" "{i}"\n' for i in range(5000))
    ambiguous = "start: " + " | ".join(f"a{i}" for i in range(5000)) + "\n" + rules
    with pytest.raises(UsageError, match=r"the grammar cannot be used: .*too complex"):
        engine.generate(QUESTION, grammar=Grammar.lark(ambiguous))
    assert engine.generate(QUESTION, grammar=Grammar.regex("a|b")).complete


@pytest.mark.parametrize(
    ("asked", "grammar"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar.json_schema({"type": "object"})),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON}}, Grammar.json_schema(PERSON)),
    ],
)
def test_response_formats_of_the_protocol(asked, grammar):
    assert Grammar.of_response_format(asked) == grammar


@pytest.mark.parametrize(
    "asked", ["json", {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}]
)
def test_other_response_formats_are_refused(asked):
    with pytest.raises(UsageError, match="response_format is"):
        Grammar.of_response_format(asked)


def test_a_vocabulary_that_cannot_be_used_is_told(engine):
    device = torch.device("cpu")
    size = engine.hierarchy.stack_of(-1).vocab_size
    with pytest.raises(UsageError, match="needs a token that ends an answer"):
        Grammars(engine.tokenizer, size, (), device).mask(Grammar.regex("a"), 1)

    class Broken:
        class backend_tokenizer:  # noqa: N801
            @staticmethod
            def to_str():
                return '{"model": {}}'

        def __len__(self):
            return 10

    with pytest.raises(UsageError, match="cannot read the tokenizer"):
        Grammars(Broken(), size, (0,), device).mask(Grammar.regex("a"), 1)


def test_a_model_whose_vocabulary_is_not_the_tokenizer_s(engine):
    known = len(engine.tokenizer)
    for size in (known - 3, known, known + 70):
        mask = Grammars(engine.tokenizer, size, engine.eos_ids, torch.device("cpu")).mask(Grammar.regex(".{1,9}"), 0)
        allowed = mask.allowed([])
        assert allowed.shape == (size,) and allowed.any() and not allowed[known:].any()


def test_decoders_take_a_grammar_for_other_hierarchies_too(engine):
    prompt, grammar = [5, 6, 7], Grammar.json_schema(PERSON)
    alone = engine.decoder(Hierarchy([engine.hierarchy.target]), grammar).token_ids(prompt, 60)
    assert engine.decoder(grammar=grammar).token_ids(prompt, 60) == alone
