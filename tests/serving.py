"""`hispec serve` as a process of its own, and clients of it."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2


@dataclass
class Server:
    """A running server.

    Attributes:
        process: its own.
        url: the address of its root.
        said: its lines on stderr until it was ready.
    """

    process: subprocess.Popen
    url: str
    said: list

    def client(self, **options):
        """An HTTP client of it."""
        return httpx2.Client(base_url=self.url, trust_env=False, timeout=60, **options)

    def end(self):
        """Wait for the end: the exit code, and the last lines on stderr."""
        return self.process.wait(60), self.process.stderr.read().splitlines()


@contextmanager
def serving(*arguments, **environment):
    """Run a server on a free port of loopback until the end of the block."""
    command = [sys.executable, "-m", "hispec_cli", "serve", "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment)
    try:
        said = []
        while not (said and (ready := re.search(r"ready at (http://\S+)/v1", said[-1]))):
            said.append(process.stderr.readline())
            assert said[-1], said
        yield Server(process, ready[1], said)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def events_of(response):
    """The objects of a stream, the last of them `[DONE]`, as they come."""
    for line in response.iter_lines():
        if line:
            assert line.startswith("data: "), line
            yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])


def post(client, path, **asked):
    """The answer to a request that is granted."""
    response = client.post(path, json=asked)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client, path, **asked):
    """All objects of a stream, without its end."""
    with client.stream("POST", path, json={**asked, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *records, done = events_of(response)
    assert done == "[DONE]"
    return records
