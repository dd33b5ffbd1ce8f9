"""`hispec serve`, asked over HTTP: answers, errors, clients that leave, and its end."""

import json
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from hispec import Engine
from hispec.grammar import Grammar
from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint
from tests.hispec_cli.test_process import endless  # noqa: F401
from tests.serving import events_of, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEXT = "a"
ASKED = {"messages": [{"role": "user", "content": QUESTION}]}
SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "integer", "minimum": 0, "maximum": 99}, "unit": {"enum": ["apples", "pens"]}},
    "required": ["number", "unit"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def engine():
    return Engine.from_profile("tiny")


def post(client, path, **asked):
    response = client.post(path, json=asked)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client, path, **asked):
    with client.stream("POST", path, json={**asked, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *records, done = events_of(response)
    assert done == "[DONE]"
    return records


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
    assert told["text_offset"][:3] == [0, len(raw[0].text), len(raw[0].text + raw[1].text)]
    offsets = []
    for piece in stream(client, COMPLETIONS, prompt=TEXT, logprobs=2):
        offsets += (piece["choices"][0]["logprobs"] or {"text_offset": []})["text_offset"]
    assert offsets == told["text_offset"]


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
        client.chat.completions.create(model="tiny", **ASKED, n=2)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "n")


def said(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


@pytest.mark.parametrize(
    ("path", "asked", "status", "param", "message"),
    [
        (COMPLETIONS, {}, 400, "prompt", "required"),
        (COMPLETIONS, {"prompt": {}}, 400, "prompt", "text, its token ids, or a list of either"),
        (COMPLETIONS, {"prompt": []}, 400, "prompt", "no list may be empty"),
        (COMPLETIONS, {"prompt": [[1], "a"]}, 400, "prompt", "list of either"),
        (COMPLETIONS, {"prompt": " "}, 400, None, "empty"),
        (COMPLETIONS, {"prompt": [10**6]}, 400, None, "not in the vocabulary"),
        (COMPLETIONS, {"prompt": [1] * 3000}, 400, None, "holds 2048"),
        (COMPLETIONS, {"prompt": ["a"] * 65}, 400, "prompt", "more than 64 prompts"),
        (COMPLETIONS, {"prompt": "a", "echo": True}, 400, "echo", "not supported"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, 400, "logprobs", "integer"),
        (COMPLETIONS, {"prompt": "a", "model": "other"}, 404, "model", "no model 'other'"),
        (CHAT, {"messages": []}, 400, "messages", "at least 1"),
        (CHAT, said(("assistant", "a")), 400, None, "must not be of the assistant"),
        (CHAT, said(("tool", "a")), 400, "messages.0.role", "'assistant'"),
        (CHAT, said(("user", [{"type": "image_url"}])), 400, "messages.0.content", "parts of the type text"),
        (CHAT, {**ASKED, "temperature": 1e-9}, 400, "temperature", "too close to 0"),
        (CHAT, {**ASKED, "top_p": 0}, 400, "top_p", "more than 0"),
        (CHAT, {**ASKED, "max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        (CHAT, {**ASKED, "seed": 2**64}, 400, "seed", "less than"),
        (CHAT, {**ASKED, "stop": ["a", ""]}, 400, "stop.1", "at least 1 character"),
        (CHAT, {**ASKED, "top_logprobs": 2}, 400, None, "needs logprobs"),
        (CHAT, {**ASKED, "tools": [{"type": "function"}]}, 400, "tools", "not supported"),
        (CHAT, {**ASKED, "response_format": FORMAT, "ignore_eos": True}, 400, "ignore_eos", "goes with no"),
        (CHAT, {**ASKED, "response_format": {"type": "xml"}}, 400, "response_format", "response_format is"),
        (
            CHAT,
            {**ASKED, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "odd"}}}},
            400,
            None,
            "JSON schema cannot be used",
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_errors_have_the_protocols_form(client, path, asked, status, param, message, streamed):
    response = client.post(path, json={**asked, "stream": streamed})
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"] and error["code"]


def test_what_changes_nothing_and_what_is_unknown_is_left_out_of_account(client, engine):
    harmless = {"n": 1, "tools": [], "presence_penalty": 0.0, "logit_bias": {}, "metadata": {"a": "b"}, "store": True}
    parts = [{"type": "text", "text": QUESTION[:20]}, {"type": "text", "text": QUESTION[20:]}]
    answer = post(client, CHAT, **said(("user", parts)), **harmless)
    assert answer["choices"][0]["message"]["content"] == engine.generate(QUESTION).text


def test_hostile_bodies_are_refused_and_the_server_goes_on(client, server):
    as_json = {"content-type": "application/json"}

    def refused(content, status, code, headers=as_json, path=COMPLETIONS):
        response = client.post(path, content=content, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text

    refused(b" " * 100_000_000, 413, "body_too_large")
    refused((b" " * 1_000_000 for _ in range(100)), 413, "body_too_large")
    for depth in (300, 1_000_000):
        refused(b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}", 400, "invalid_json")
    refused(b'{"prompt": "a\x01"}', 400, "invalid_json")
    refused(b'{"prompt": "\xff"}', 400, "invalid_json")
    refused(b'{"prompt": "\\ud800"}', 400, "invalid_json")
    refused(b'{"prompt": "a", "temperature": NaN}', 400, "invalid_json")
    refused(b'{"prompt": "a", "temperature": 1e999}', 400, "invalid_value")
    refused(b'{"prompt": "a"', 400, "invalid_json")
    refused(b'{"prompt": "a"}', 415, "invalid_content_type", {"content-type": "text/plain"})
    refused(b"{}", 404, "not_found", path="/v1/%1b%5b31m")
    assert client.delete(CHAT).status_code == 405
    schema = {"anyOf": [{"pattern": f"^({'a?' * 500}){{1,500}}{number}$"} for number in range(50)]}
    exploding = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert client.post(CHAT, json={**ASKED, "response_format": exploding}).status_code in (200, 400)
    answer = post(client, COMPLETIONS, prompt="\x00\x1b[2J\u202e and \x07", max_tokens=4)
    assert answer["usage"]["completion_tokens"] == 4
    assert client.get("/health").json() == {"status": "ok", "model": "tiny", "waiting": 0}
    assert server.process.poll() is None


def test_what_happened_is_counted(client):
    post(client, COMPLETIONS, prompt="Anna", max_tokens=4)
    lines = client.get("/metrics").text.splitlines()
    counted = {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if not line.startswith("#")}
    assert counted['hispec_answers_total{end="length"}'] >= 1 and counted["hispec_waiting_prompts"] == 0
    assert counted['hispec_responses_total{path="/v1/completions",status="200"}'] >= 1
    assert counted["hispec_generated_tokens_total"] > counted["hispec_target_passes_total"] > 0
    assert counted['hispec_proposed_tokens_total{level="draft"}'] > 0 < counted["hispec_first_token_seconds_count"]


@pytest.fixture(scope="module")
def slow(endless):  # noqa: F811
    """A server whose answers take seconds, with a key, room for three, and a page that may ask."""
    options = ("--queue", 3, "--max-body", 0.01, "--allow-origin", "https://example.org")
    with serving(*endless[2:], *options, HISPEC_API_KEY="secret") as server:
        yield server


@pytest.fixture
def slow_client(slow):
    with slow.client(headers={"authorization": "Bearer secret"}) as client:
        yield client
    wait_for(slow, 0)


def wait_for(server, waiting, *, busy=False):
    """Wait until so many prompts wait, and one is or is not being answered."""
    seen = None
    with server.client(headers={"authorization": "Bearer secret"}) as client:
        for _ in range(1500):
            seen = client.get("/health").json()["waiting"], "hispec_answering 1.0" in client.get("/metrics").text
            if seen == (waiting, busy):
                return
            time.sleep(0.02)
    raise AssertionError(seen)


def test_without_the_key_only_health_is_told(slow):
    with slow.client() as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            for path in ("/metrics", "/v1/models"):
                assert client.get(path, headers=headers).status_code == 401
            response = client.post(CHAT, json=ASKED, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/v1/models", headers={"authorization": "bearer secret"}).status_code == 200
        assert client.post(CHAT, content=b" " * 20_000, headers={"authorization": b"Bearer \xe9"}).status_code == 401


def test_a_browser_may_ask_from_the_pages_that_are_allowed_alone(client, slow_client):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    allowed = slow_client.options(CHAT, headers={"origin": "https://example.org", **asked})
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    for one, origin in ((slow_client, "https://evil.example"), (client, "https://example.org")):
        response = one.options(CHAT, headers={"origin": origin, **asked})
        assert "access-control-allow-origin" not in response.headers


def test_more_than_there_is_room_for_is_told_to_come_later_and_who_leaves_makes_room(slow, slow_client):
    asked = {"prompt": "Anna", "stream": True}
    with slow_client.stream("POST", COMPLETIONS, json=asked) as first, ThreadPoolExecutor() as pool:
        events = events_of(first)  # which ends the response with itself
        next(events)
        leaving = begun(slow, asked)
        others = [pool.submit(stream, client, COMPLETIONS, **asked, max_tokens=5) for client in clients(slow, 2)]
        wait_for(slow, 3, busy=True)
        refused = slow_client.post(COMPLETIONS, json=asked)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert refused.headers["retry-after"]
        leaving.close()
        wait_for(slow, 2, busy=True)
        first.close()
        assert all(other.result()[-1]["choices"][0]["finish_reason"] == "length" for other in others)


def clients(server, count):
    return [server.client(headers={"authorization": "Bearer secret"}) for _ in range(count)]


def begun(server, asked, length=0):
    """A connection on which a request was sent; whoever asks so reads nothing of the answer."""
    host, port = server.url.removeprefix("http://").split(":")
    connection, body = socket.socket(), json.dumps(asked)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    connection.connect((host, int(port)))
    head = f"Host: x\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\nContent-Length: {length or len(body)}"
    connection.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
    return connection


def test_many_clients_at_once_half_of_whom_leave(slow, slow_client):
    def ask(number):
        with slow.client(headers=slow_client.headers) as client:
            while True:
                asked = {"prompt": "Anna", "stream": True, "max_tokens": 8 if number % 2 else 1800}
                with client.stream("POST", COMPLETIONS, json=asked) as response:
                    if response.status_code == 429:
                        time.sleep(0.02)
                        continue
                    if number % 2:
                        return [*events_of(response)][-1]
                    return next(events_of(response)) and "left"

    def left():
        (count,) = re.findall(r'hispec_answers_total{end="left"} (\S+)', slow_client.get("/metrics").text) or ["0"]
        return float(count)

    before = left()
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(ask, range(16))] == ["left", "[DONE]"] * 8
    wait_for(slow, 0)
    assert left() == before + 8


def test_who_does_not_read_or_does_not_write_on_does_not_hold_up_others(slow, slow_client):
    asked = {"prompt": "Anna", "stream": True, "max_tokens": 300}
    with begun(slow, asked), begun(slow, {}, length=100):
        assert post(slow_client, COMPLETIONS, prompt="Ben", max_tokens=4)["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(("host", "grace"), [("0.0.0.0", 0), ("127.0.0.1", 60)])
def test_sigterm_ends_answers_properly_and_listening_beyond_this_machine_is_said_aloud(endless, host, grace):  # noqa: F811
    asked = {"prompt": "Anna", "stream": True, "max_tokens": 400 if grace else 1800}
    options = (*endless[2:], "--host", host, "--grace", grace)
    with serving(*options) as server, server.client() as client, ThreadPoolExecutor() as pool:
        with client.stream("POST", COMPLETIONS, json=asked) as response:
            events = events_of(response)
            next(events)
            with server.client() as another:
                queued = pool.submit(another.post, COMPLETIONS, json={"prompt": "Ben"})
                wait_for(server, 1, busy=True)
                server.process.send_signal(signal.SIGTERM)
                refused = queued.result()
            *_, last, done = events
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert done == "[DONE]"
        if grace:
            assert last["choices"][0]["finish_reason"] == "length"
        else:
            assert last["error"]["code"] == "shutting_down"
        code, lines = server.end()
        assert (code, lines[-1]) == (0, "stopped")
        assert len(lines) == (1 if grace else 3)
        if not grace:
            assert "whoever reaches it" in lines[0] and "HISPEC_API_KEY" in lines[1]


def test_what_cannot_be_served_is_told(hispec, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_message_and_hint(hispec("serve", "--port", port), 5, "already in use", "--port")
    assert_message_and_hint(hispec("serve", "--host", "no.such.host.invalid"), 2, "is no address", "127.0.0.1")
    assert_message_and_hint(hispec("serve", "--host", "192.0.2.1"), 5, "192.0.2.1", "--host")
    for key in ("", "two words", "é"):
        monkeypatch.setenv("HISPEC_API_KEY", key)
        assert_message_and_hint(hispec("serve"), 2, "HISPEC_API_KEY", "unset it")
