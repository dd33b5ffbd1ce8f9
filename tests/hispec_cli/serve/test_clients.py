"""Clients of `hispec serve` that wait, leave, or do not read; its counts and its end."""

import json
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hispec_cli.serve.conftest import COMPLETIONS, wait_for
from tests.serving import events_of, post, serving, stream


def test_what_happened_is_counted(client):
    post(client, COMPLETIONS, prompt="Anna", max_tokens=4)
    lines = client.get("/metrics").text.splitlines()
    counted = {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if not line.startswith("#")}
    assert counted['hispec_answers_total{end="length"}'] >= 1 and counted["hispec_waiting_prompts"] == 0
    assert counted['hispec_responses_total{path="/v1/completions",status="200"}'] >= 1
    assert counted["hispec_generated_tokens_total"] > counted["hispec_target_passes_total"] > 0
    assert counted['hispec_proposed_tokens_total{level="draft"}'] > 0 < counted["hispec_first_token_seconds_count"]


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
        ended = answers_ended(slow_client)
        leaving.close()
        wait_for(slow, 2, busy=True)
        assert answers_ended(slow_client) == ended  # there was room before its turn came
        first.close()
        assert all(other.result()[-1]["choices"][0]["finish_reason"] == "length" for other in others)


def answers_ended(client):
    """The number of answers that have ended, in any way."""
    return sum(map(float, re.findall(r'hispec_answers_total{end=".+"} (\S+)', client.get("/metrics").text)))


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
def test_sigterm_ends_answers_properly_and_listening_beyond_this_machine_is_said_aloud(endless, host, grace):
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
            assert "anyone who reaches" in lines[0] and "HISPEC_API_KEY" in lines[1]
