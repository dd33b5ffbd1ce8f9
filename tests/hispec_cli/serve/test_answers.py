"""What `hispec serve` answers is what the engine answers, in every form that a request may ask for."""

import json

import openai
import pytest

from hispec.grammar import Grammar
from tests.hispec_cli.conftest import QUESTION
from tests.hispec_cli.serve.conftest import ASKED, CHAT, COMPLETIONS, FORMAT, SCHEMA, TEXT
from tests.serving import post, stream


def test_an_answer_is_that_of_the_engine_whole_and_as_a_stream(client, engine):
    expected = engine.generate(QUESTION)
    whole = post(client, CHAT, **ASKED)
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert (choice["finish_reason"], whole["model"], whole["object"]) == ("stop", "tiny", "chat.completion")
    counts = len(expected.prompt_ids), len(expected.token_ids)
    usage = whole["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (*counts, sum(counts))
    assert usage["hispec"]["tokens_per_target_pass"] > 1
    assert [level["name"] for level in usage["hispec"]["levels"]] == ["draft", "intermediate"]
    records = stream(client, CHAT, **ASKED, stream_options={"include_usage": True})
    *pieces, last = records
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], counts[1])
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == counts[0] - 1
    choices = [piece["choices"][0] for piece in pieces]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == expected.text
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert len({record["id"] for record in records}) == 1


def test_a_later_turn_finds_the_earlier_ones_in_the_cache(client):
    first = post(client, CHAT, **ASKED)
    said = first["choices"][0]["message"]["content"]
    more = [*ASKED["messages"], {"role": "assistant", "content": said}, {"role": "user", "content": "Who are you?"}]
    usage = post(client, CHAT, messages=more)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]


def test_completions_go_on_after_texts_and_token_ids(client, engine):
    ids = engine.tokenizer(TEXT)["input_ids"]
    expected = engine.generate(TEXT, raw=True).text
    for prompt in (TEXT, ids, [TEXT], [ids]):
        (choice,) = post(client, COMPLETIONS, prompt=prompt)["choices"]
        assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
    both = post(client, COMPLETIONS, prompt=["Anna", TEXT], max_tokens=3)
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert [choice["finish_reason"] for choice in both["choices"]] == ["length"] * 2
    assert both["usage"]["completion_tokens"] == 6
    texts = ["", ""]
    for record in stream(client, COMPLETIONS, prompt=["Anna", TEXT], max_tokens=3):
        (choice,) = record["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in both["choices"]]
    assert texts[1] == engine.tokenizer.decode(engine.generate(TEXT, raw=True).token_ids[:3])


def test_stop_texts_end_an_answer_and_are_not_part_of_it(client, engine):
    expected, _, _ = engine.generate(QUESTION).text.partition("\n####")
    for stop in ("\n####", ["never", "\n####"]):
        (choice,) = post(client, CHAT, **ASKED, stop=stop)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
        pieces = stream(client, CHAT, **ASKED, stop=stop)
        assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == expected


def test_an_answer_may_go_on_after_its_end(client, engine):
    asked = {"prompt": TEXT, "max_tokens": 40, "logprobs": 0}
    ended, longer = (post(client, COMPLETIONS, **asked, ignore_eos=on)["choices"][0] for on in (False, True))
    count = len(ended["logprobs"]["tokens"])
    assert longer["finish_reason"] == "length" and len(longer["logprobs"]["tokens"]) == 40 > count
    assert longer["logprobs"]["tokens"][:count] == ended["logprobs"]["tokens"]


def test_a_seed_gives_the_answer_of_the_engine_with_it(client, engine):
    sampled = {"temperature": 1.5, "top_p": 0.9, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.1}
    options = {"seed": 7, "max_completion_tokens": 30, **sampled}
    expected = engine.with_settings(max_new_tokens=30, **sampled).generate(QUESTION, seed=7)
    for _ in range(2):
        answer = post(client, CHAT, **ASKED, **options)
        assert answer["choices"][0]["message"]["content"] == expected.text
        assert answer["usage"]["hispec"]["seeds"] == [7]
    for name, value in {"top_p": 0.3, "top_k": 1, "min_p": 0.9, "repetition_penalty": 3.0}.items():
        changed = {"temperature": 3.0, name: value}
        one = engine.with_settings(max_new_tokens=30, **changed).generate(QUESTION, seed=7).text
        assert one != engine.with_settings(max_new_tokens=30, temperature=3.0).generate(QUESTION, seed=7).text
        answer = post(client, CHAT, **ASKED, **changed, seed=7, max_completion_tokens=30)
        assert answer["choices"][0]["message"]["content"] == one
    answers = [post(client, CHAT, **ASKED, **options | {"seed": seed}) for seed in (8, 9, 10, 11, -(2**63))]
    assert {answer["choices"][0]["message"]["content"] for answer in answers} != {expected.text}


def test_log_probabilities_are_those_of_the_engine(client, engine):
    expected = engine.generate(QUESTION, logprobs=2).logprobs
    whole = post(client, CHAT, **ASKED, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    pieces = stream(client, CHAT, **ASKED, logprobs=True, top_logprobs=2)
    streamed = [token for piece in pieces for token in (piece["choices"][0]["logprobs"] or {"content": []})["content"]]
    for told in (whole, streamed):
        assert [token["token"] for token in told] == [token.text for token in expected]
        assert [token["logprob"] for token in told] == pytest.approx([token.logprob for token in expected], abs=1e-4)
        assert all(len(token["top_logprobs"]) == 2 for token in told)
        assert bytes(b for token in told for b in token["bytes"]).decode() == "".join(token.text for token in expected)
    assert post(client, CHAT, **ASKED, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    raw = engine.generate(TEXT, raw=True, logprobs=2).logprobs
    told = post(client, COMPLETIONS, prompt=TEXT, logprobs=2)["choices"][0]["logprobs"]
    assert told["tokens"] == [token.text for token in raw]
    assert told["token_logprobs"] == pytest.approx([token.logprob for token in raw], abs=1e-4)
    assert all(set(top) >= {token} for top, token in zip(told["top_logprobs"], told["tokens"], strict=True))
    sampled = post(client, COMPLETIONS, prompt=TEXT, logprobs=1, temperature=3.0, seed=1, max_tokens=20)
    below = sampled["choices"][0]["logprobs"]
    assert all(set(top) >= {token} for top, token in zip(below["top_logprobs"], below["tokens"], strict=True))
    assert {len(top) for top in below["top_logprobs"]} == {1, 2}  # the token is added where it is not the most probable
    assert told["text_offset"][:3] == [0, len(raw[0].text), len(raw[0].text + raw[1].text)]
    offsets = []
    for piece in stream(client, COMPLETIONS, prompt=TEXT, logprobs=2):
        offsets += (piece["choices"][0]["logprobs"] or {"text_offset": []})["text_offset"]
    assert offsets == told["text_offset"]


def test_a_prompt_comes_before_its_answer_with_its_log_probabilities(client, engine):
    answer = engine.generate(TEXT, raw=True, logprobs=2)
    read, written = answer.prompt_ids, answer.token_ids
    text = read + written[:-1]
    asked = {"prompt": text, "echo": True, "logprobs": 2}
    for count in (0, 1):
        whole = post(client, COMPLETIONS, **asked, max_tokens=count)
        (choice,) = whole["choices"]
        told = choice["logprobs"]
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        assert told["tokens"] == engine.tokenizer.batch_decode(
            [[token] for token in [*text, *written[-1:]][: len(text) + count]]
        )
        expected = [one.logprob for one in answer.logprobs][: len(written) - 1 + count]
        assert told["token_logprobs"][len(read) :] == pytest.approx(expected, abs=1e-4)
        assert all(
            max(top, key=top.get) == token
            for top, token in zip(told["top_logprobs"][len(read) :], told["tokens"][len(read) :], strict=True)
        )
        assert told["text_offset"][1] == len(told["tokens"][0])
        assert choice["text"].startswith(engine.tokenizer.decode(text))
        usage = whole["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(text), count)
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        pieces = [record["choices"][0] for record in stream(client, COMPLETIONS, **asked, max_tokens=count)]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [one for piece in pieces for one in (piece["logprobs"] or told | {"tokens": []})["tokens"]] == told[
            "tokens"
        ]
    (only,) = post(client, COMPLETIONS, prompt=TEXT, echo=True)["choices"]
    assert (only["text"], only["logprobs"]) == (TEXT + answer.text, None)


def test_several_answers_to_a_prompt_have_one_seed_after_the_other(client):
    asked = {"prompt": [TEXT, "Anna"], "temperature": 1.0, "max_tokens": 12}
    alone = [post(client, COMPLETIONS, **asked, seed=seed) for seed in (7, 8)]
    expected = [answer["choices"][at]["text"] for at in (0, 1) for answer in alone]
    both = post(client, COMPLETIONS, **asked, seed=7, n=2)
    assert [choice["text"] for choice in both["choices"]] == expected and len(set(expected)) > 2
    assert both["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    assert both["usage"]["completion_tokens"] == sum(answer["usage"]["completion_tokens"] for answer in alone)
    assert both["usage"]["hispec"]["seeds"] == [7, 8, 7, 8]
    for _ in range(2):  # the second time, the prompt is in the cache
        usage = post(client, COMPLETIONS, prompt=QUESTION, max_tokens=1, n=3)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    texts = ["", ""]
    for record in stream(client, CHAT, **ASKED, temperature=1.0, max_tokens=9, n=2):
        (choice,) = record["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert all(texts)


def test_structured_answers_match_their_schema(client, engine):
    expected = engine.generate(QUESTION, grammar=Grammar.json_schema(SCHEMA)).text
    assert post(client, CHAT, **ASKED, response_format=FORMAT)["choices"][0]["message"]["content"] == expected
    assert json.loads(expected)["unit"] in ("apples", "pens")
    (choice,) = post(client, COMPLETIONS, prompt=QUESTION, response_format=FORMAT)["choices"]
    assert set(json.loads(choice["text"])) == {"number", "unit"}
    assert post(client, CHAT, **ASKED, response_format={"type": "text"})


def test_the_client_package_of_the_protocol_works(server, engine):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "hispec"
    expected = engine.generate(QUESTION).text
    answer = client.chat.completions.create(model="tiny", **ASKED)
    assert answer.choices[0].message.content == expected
    chunks = client.chat.completions.create(model="tiny", **ASKED, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.chat.completions.create(model="other", **ASKED)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", **ASKED, presence_penalty=1)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "presence_penalty")
