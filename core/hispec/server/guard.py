"""Middleware that refuses requests without the token, requests that are too large or too slow, and bodies that are not
JSON.
"""

import asyncio
import hmac
from collections.abc import Callable
from contextlib import suppress

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hispec.server.errors import ProtocolError

BODY_SECONDS = 30.0
"""Within which a request must have come as a whole."""
DISCARD_SECONDS = 5.0
"""The seconds for which the rest of a body that is too large is read and dropped."""
OPEN = ("/health",)
"""Paths that need no token."""


class Guard:
    """An ASGI application around another.

    Args:
        app: the application behind it.
        token: the token that requests must bear, None if they need none.
        most_bytes: the largest body, in bytes.
        count: called with the path and the status of each response.
    """

    def __init__(self, app: ASGIApp, token: str | None, most_bytes: int, count: Callable[[str, int], None]) -> None:
        self._app, self._count = app, count
        self._token = None if token is None else token.encode()
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
            await send(message)

        body, whole = b"", False
        try:
            self._check_token(scope)
            if scope["method"] == "POST":
                body = await self._read(scope, receive)
                whole = True
                _check_json(body)
        except ProtocolError as error:
            if not whole and not Headers(scope=scope).get("expect"):  # with `expect`, nothing has been sent yet
                await _discard(receive)
            response = JSONResponse(error.to_record(), error.status, {"connection": "close"})
            if error.status == 401:
                response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, counting)
            return
        left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return left.pop() if left else await receive()

        await self._app(scope, again, counting)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in OPEN:
            return
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode("latin-1"), self._token):
            raise ProtocolError(
                401, "the API key is missing or wrong: send Authorization: Bearer KEY", "invalid_api_key"
            )

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body of a request that says that it is JSON."""
        headers = Headers(scope=scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ProtocolError(
                415, "the body must be JSON: send Content-Type: application/json", "invalid_content_type"
            )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self._most_bytes):
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > self._most_bytes:
                        raise self._too_large()
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise ProtocolError(408, f"the body did not come within {BODY_SECONDS:g} s", "timeout") from None
        return bytes(body)

    def _too_large(self) -> ProtocolError:
        return ProtocolError(413, f"the body has more than {self._most_bytes} bytes", "body_too_large")


def _check_json(body: bytes) -> None:
    try:
        from_json(body, allow_inf_nan=False)  # bounds the depth, which the parser behind does by its stack
    except ValueError as error:
        raise ProtocolError(400, f"the body is not JSON that can be read: {error}", "invalid_json") from None


async def _discard(receive: Receive) -> None:
    """Read on for a moment, since a client that is cut off while it writes would not read the error."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while (await receive()).get("more_body"):
                pass
