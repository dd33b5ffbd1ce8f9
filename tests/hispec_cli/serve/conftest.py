"""A running server, its client, the engine that it must answer like; and a slow server with little room."""

import time

import pytest

from hispec import Engine
from tests.hispec_cli.conftest import QUESTION
from tests.serving import serving

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


@pytest.fixture(scope="package")
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="package")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="package")
def engine():
    return Engine.from_profile("tiny")


@pytest.fixture(scope="package")
def slow(endless):
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
