"""Runs a server: from a bound socket to an orderly end."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hispec.errors import UnavailableError, UsageError
from hispec.server.answering import Answering

READER_SECONDS = 60
"""The seconds after which a client that reads nothing of what was sent is dropped."""
LINGER_SECONDS = 5
"""After the last answer, for clients that read slowly."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        UsageError: an address that this machine does not have.
        UnavailableError: a port that is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise UsageError(
            f"{host!r} is not an address", "give one of this machine: 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux only; the sockets of clients inherit it
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, READER_SECONDS * 1000)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise UnavailableError(
            f"{host} port {port} cannot be listened on: {error.strerror}", "choose another with --port, or --host"
        ) from None
    return found


class _Server(uvicorn.Server):
    """Ends in two steps: the answer under way has some time, then it is cut off.

    Args:
        config: the configuration of uvicorn.
        answering: the object that answers requests.
        grace: seconds that an answer has after the first signal; the second one cuts it off.
    """

    def __init__(self, config: uvicorn.Config, answering: Answering, grace: float) -> None:
        super().__init__(config)
        self._answering, self._grace = answering, grace

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals; unlike the library, do not end by them again afterwards: this end is a good one."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end sooner."""
        if self.should_exit:
            self._answering.cut()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and let those go that are here."""
        self._answering.close()
        cut = asyncio.get_running_loop().call_later(self._grace, self._answering.cut)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()


def run(app: FastAPI, answering: Answering, listening: socket.socket, grace: float, ready: Callable[[], None]) -> None:
    """Serve until a signal ends it.

    Args:
        app: the routes.
        answering: the object that answers requests; it is started here.
        listening: a bound socket.
        grace: the seconds that answers have to finish, as for `_Server`.
        ready: called before the first request is taken.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(grace) + LINGER_SECONDS,
    )
    server = _Server(config, answering, grace)
    listening.listen(config.backlog)
    answering.start()
    ready()
    with suppress(KeyboardInterrupt):
        server.run([listening])
    answering.cut()
    answering.close()
    answering.join()
