"""The routes of the server."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from hispec import __version__
from hispec.server.answering import Answer, Answering
from hispec.server.errors import ProtocolError, told
from hispec.server.guard import Guard
from hispec.server.replies import ChatReply, Reply
from hispec.server.requests import Asked, ChatRequest, CompletionRequest

LEFT = 499
"""The status that is counted for a response whose client has gone, as in nginx."""


@dataclass(frozen=True)
class Rules:
    """The limits of requests: who may send them, and their size.

    Attributes:
        token: the token that requests must bear, None if they need none.
        most_bytes: the largest body of a request, in bytes.
        origins: the origins of web pages that may send requests from a browser.
    """

    token: str | None = None
    most_bytes: int = 4_000_000
    origins: tuple[str, ...] = ()


class _Left(Exception):  # noqa: N818 (not an error)
    """The client has gone."""


def make_app(answering: Answering, rules: Rules) -> FastAPI:
    """Return the application that answers requests with an engine."""
    profile, began = answering.engine.profile, int(time.time())
    name = Path(profile.name).name if Path(profile.name).exists() else profile.name
    names = {name, profile.name, profile.target.model}
    model = {"id": name, "object": "model", "created": began, "owned_by": "hispec"}
    app = FastAPI(title="hispec", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> JSONResponse:
        able = answering.able
        told = {"status": "ok" if able else "unavailable", "model": name, "waiting": answering.waiting}
        return JSONResponse(told, 200 if able else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(answering.metrics.written(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{asked:path}")
    async def one_model(asked: str) -> dict[str, Any]:
        check_model(asked)
        return model

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        check_model(asked.model)
        return await respond(answering, asked, ChatReply(name), request)

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        check_model(asked.model)
        return await respond(answering, asked, Reply(name), request)

    def check_model(asked: str | None) -> None:
        if asked is not None and asked not in names:
            raise ProtocolError(404, f"there is no model {asked!r} here, but {name!r}", "model_not_found", "model")

    paths = {route.path for route in app.routes if hasattr(route, "path")}

    def count(path: str, status: int) -> None:
        answering.metrics.responses.labels(path if path in paths else "other", str(status)).inc()

    app.add_middleware(Guard, token=rules.token, most_bytes=rules.most_bytes, count=count)
    if rules.origins:
        app.add_middleware(CORSMiddleware, allow_origins=rules.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_exception_handler(Exception, _refuse)
    for kind in (ProtocolError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _refuse)
    return app


async def _refuse(_: Request, error: Exception) -> Response:
    """Return the response for an error, in the protocol's form."""
    match error:
        case RequestValidationError():
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][1:])
            what = first["msg"].removeprefix("Value error, ")
            error = ProtocolError(400, f"{place}: {what}" if place else what, "invalid_value", place or None)
        case HTTPException():
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
            error = ProtocolError(error.status_code, str(error.detail), code)
    found = told(error)
    return JSONResponse(found.to_record(), found.status, {"retry-after": "1"} if found.status == 429 else None)


async def respond(answering: Answering, asked: Asked, reply: Reply, request: Request) -> Response:
    """Answer a request, as a whole or as a stream.

    Raises:
        ProtocolError: the request cannot be answered, or its answer cannot be finished.
    """
    host = "" if request.client is None else request.client.host
    answers = answering.ask(asked.questions(), f"{host} {asked.user or ''}", asked.n or 1)
    try:
        if asked.stream:
            await _while_connected(request, answers[0].begin())  # an error before the first event sets the status
            return _Stream(answering, answers, asked, reply)
        await _while_connected(request, _all(answers))
        generations = [answer.generation for answer in answers if answer.generation is not None]
        return JSONResponse(reply.whole(generations, [answer.echo for answer in answers], asked.n or 1))
    except BaseException as error:
        _leave(answering, answers)
        if isinstance(error, _Left):
            return Response(status_code=LEFT)
        raise


class _Stream(StreamingResponse):
    """Answers as server-sent events; the rest of them is cancelled once the client has gone."""

    def __init__(self, answering: Answering, answers: Sequence[Answer], asked: Asked, reply: Reply) -> None:
        super().__init__(
            _events(answers, asked, reply),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._answering, self._answers = answering, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _leave(self._answering, self._answers)


async def _events(answers: Sequence[Answer], asked: Asked, reply: Reply) -> AsyncGenerator[bytes]:
    """Yield the events of a stream; an error is an event too, since the response has begun already."""
    try:
        for index, answer in enumerate(answers):
            for record in reply.opening(index):
                yield _event(record)
            async for piece in answer.pieces():
                yield _event(reply.piece(index, piece))
            assert answer.generation is not None
            yield _event(reply.end(index, answer.generation.finish_reason))
        if asked.with_usage:
            generations = [answer.generation for answer in answers if answer.generation is not None]
            yield _event(reply.usage(generations, asked.n or 1))
    except ProtocolError as error:
        yield _event(error.to_record())
    yield b"data: [DONE]\n\n"


def _event(record: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _leave(answering: Answering, answers: Sequence[Answer]) -> None:
    for answer in answers:
        answering.leave(answer)


async def _all(answers: Sequence[Answer]) -> None:
    for answer in answers:
        await answer.whole()


async def _while_connected(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Wait for some work while the client is connected.

    Raises:
        _Left: the client has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise _Left
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
