"""What `hispec serve` refuses, and how it says so: fields, bodies, keys, origins, addresses."""

import re
import socket
from pathlib import Path

import pytest

from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint
from tests.hispec_cli.serve.conftest import ASKED, CHAT, COMPLETIONS, FORMAT
from tests.serving import post


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
        (COMPLETIONS, {"prompt": ["a"] * 1025}, 400, "prompt", "more than 1024 prompts"),
        (COMPLETIONS, {"prompt": ["a"] * 65}, 400, "prompt", "more than 64 answers"),
        (COMPLETIONS, {"prompt": ["a"] * 9, "n": 8}, 400, "n", "more than 64 answers"),
        (COMPLETIONS, {"prompt": "a", "n": 0}, 400, "n", "greater than or equal to 1"),
        (COMPLETIONS, {"prompt": "a", "n": 10**9}, 400, "n", "less than or equal to 128"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, 400, None, "needs echo"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2}, 400, "best_of", "there is n"),
        (CHAT, {**ASKED, "echo": True}, 400, "echo", "not supported"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, 400, "logprobs", "integer"),
        (COMPLETIONS, {"prompt": "a", "model": "other"}, 404, "model", "no model 'other'"),
        (CHAT, {"messages": []}, 400, "messages", "at least 1"),
        (CHAT, said(("assistant", "a")), 400, None, "must not have the role"),
        (CHAT, said(("tool", "a")), 400, "messages.0.role", "'assistant'"),
        (CHAT, said(("user", [{"type": "image_url"}])), 400, "messages.0.content", "parts of the type text"),
        (CHAT, {**ASKED, "temperature": 1e-9}, 400, "temperature", "too close to 0"),
        (CHAT, {**ASKED, "top_p": 0}, 400, "top_p", "more than 0"),
        (CHAT, {**ASKED, "max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        (CHAT, {**ASKED, "seed": 2**64}, 400, "seed", "less than"),
        (CHAT, {**ASKED, "stop": ["a", ""]}, 400, "stop.1", "at least 1 character"),
        (CHAT, {**ASKED, "top_logprobs": 2}, 400, None, "needs logprobs"),
        (CHAT, {**ASKED, "tools": [{"type": "function"}]}, 400, "tools", "no function is called here"),
        (CHAT, {**ASKED, "response_format": FORMAT, "ignore_eos": True}, 400, "ignore_eos", "cannot be combined"),
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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process on Linux")
def test_long_texts_and_lists_of_mistakes_take_little_memory(client, server):
    def largest():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])

    def body(begin, repeated, end):
        return (begin + repeated * (3_900_000 // len(repeated)) + end).encode()

    before = largest()
    for path, content, code in (
        (COMPLETIONS, body('{"prompt": "', "Anna has 3 apples. ", '"}'), "context_length_exceeded"),
        (CHAT, body('{"messages": [{"role": "user", "content": "', "apple ", '"}]}'), "context_length_exceeded"),
        (COMPLETIONS, body('{"prompt": [', '"a",', '"a"]}'), "invalid_value"),
        (COMPLETIONS, body('{"prompt": [1', ",null", "]}"), "invalid_value"),
        (COMPLETIONS, body('{"prompt": [[1', ",null", "]]}"), "invalid_value"),
        (CHAT, body('{"messages": [{}', ",{}", "]}"), "invalid_value"),
    ):
        response = client.post(path, content=content, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, code), response.text
    assert largest() - before < 300_000


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


def test_what_cannot_be_served_is_told(hispec, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_message_and_hint(hispec("serve", "--port", port), 5, "already in use", "--port")
    assert_message_and_hint(hispec("serve", "--host", "no.such.host.invalid"), 2, "is not an address", "127.0.0.1")
    assert_message_and_hint(hispec("serve", "--host", "192.0.2.1"), 5, "192.0.2.1", "--host")
    for key in ("", "two words", "é"):
        monkeypatch.setenv("HISPEC_API_KEY", key)
        assert_message_and_hint(hispec("serve"), 2, "HISPEC_API_KEY", "unset it")
