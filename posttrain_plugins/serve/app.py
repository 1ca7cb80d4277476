"""The routes. Each reads a request, lets the service answer in a thread, and writes the answer."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from posttrain_plugins.serve import replies
from posttrain_plugins.serve.fields import ApiError
from posttrain_plugins.serve.protocol import Call, Limits, read_body, read_chat, read_completion
from posttrain_plugins.serve.replies import Reply
from posttrain_plugins.serve.service import Service, Ticket

__all__ = ["Door", "create_app"]

KEEP_ALIVE_S = 10.0
POLL_S = 0.2
BODY_S = 30.0
CLIENT_GONE = ApiError(499, "the client has gone", code="client_gone")


class Door:
    """Who may come in, and who is inside.

    Args:
        service: answers them.
        api_key: what clients must send; None lets everyone in.
        threads: calls that are at work at once; further ones wait in line.
        keep_alive_s: a stream that has nothing to tell yet sends a comment this often.
    """

    def __init__(
        self, service: Service, *, api_key: str | None = None, threads: int = 64, keep_alive_s: float = KEEP_ALIVE_S
    ) -> None:
        self.service = service
        self.api_key = api_key
        self.keep_alive_s = keep_alive_s
        self.is_closing = False
        self.inside: set[object] = set()
        self.working: set[Ticket] = set()
        self.seats = asyncio.Semaphore(threads)

    def check(self, request: Request) -> None:
        """Turn away who may not come in.

        Raises:
            ApiError: 401 without the key, 503 while the server ends.
        """
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        is_right = scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), (self.api_key or "").encode())
        if self.api_key is not None and not is_right:
            raise ApiError(
                401, "the API key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key"
            )
        if self.is_closing:
            raise ApiError(503, "the server ends; ask another one", code="closing")

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Around a request, until its answer is written."""
        visitor = object()
        self.inside.add(visitor)
        try:
            with self.service.worker.client():
                yield
        finally:
            self.inside.discard(visitor)

    @contextmanager
    def at_work(self, ticket: Ticket) -> Iterator[asyncio.Task[Reply]]:
        """The answer in the making; what is left without it is cancelled."""
        task = asyncio.create_task(self._answer(ticket))
        self.working.add(ticket)
        try:
            yield task
        finally:
            self.working.discard(ticket)
            ticket.cancel()
            task.cancel()

    async def _answer(self, ticket: Ticket) -> Reply:
        async with self.seats:
            reply: Reply = await _in_thread(self.service.answer, ticket)
            return reply

    def cancel_all(self) -> None:
        """What is still at work ends with 503."""
        for ticket in list(self.working):
            ticket.cancel()


def create_app(door: Door) -> FastAPI:
    """The application; `door.service` answers."""
    service = door.service
    app = FastAPI(title="posttrain", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> Response:
        counts = {
            "in_flight": len(door.inside),
            "waves": service.worker.waves,
            "completions": service.worker.completions,
        }
        state = {"status": "closing" if door.is_closing else "ok", "models": list(service.models), **counts}
        return JSONResponse(state, 503 if door.is_closing else 200)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        door.check(request)
        return JSONResponse({"object": "list", "data": service.listing()})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        door.check(request)
        found = next((row for row in service.listing() if row["id"] == name), None)
        if found is None:
            raise service.unknown(name)
        return JSONResponse(found)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(door, request, read_chat)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(door, request, read_completion)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        by_status = {401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}, 503: {"Retry-After": "1"}}
        headers = by_status.get(error.status)
        return JSONResponse(error.to_json(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(ApiError(error.status_code, message).to_json(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        message = f"the server failed: {type(error).__name__}"  # the traceback goes to its own stderr
        return JSONResponse(ApiError(500, message, code="failed").to_json(), 500)

    return app


async def _answer(door: Door, request: Request, read: Callable[[Mapping[str, Any], Limits], Call]) -> Response:
    door.check(request)
    with door.visit():
        call = read(read_body(await _bytes(request, door.service.limits.max_body_bytes)), door.service.limits)
        ticket = await _in_thread(door.service.admit, call)
        if call.is_streamed:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(_stream(door, request, ticket), media_type="text/event-stream", headers=headers)
        with door.at_work(ticket) as task:
            async for _ in _waiting(request, ticket, task):
                pass
            return JSONResponse(replies.body(task.result()))


async def _stream(door: Door, request: Request, ticket: Ticket) -> AsyncIterator[str]:
    told = time.monotonic()
    with door.visit(), door.at_work(ticket) as task:
        try:
            async for _ in _waiting(request, ticket, task):
                if time.monotonic() - told >= door.keep_alive_s:
                    told = time.monotonic()
                    yield ": the answer is not finished\n\n"
            for event in replies.events(task.result()):
                yield event
        except ApiError as error:
            yield replies.event(error.to_json())


async def _waiting(request: Request, ticket: Ticket, task: asyncio.Task[Reply]) -> AsyncIterator[None]:
    """Ticks until the answer is there, or until nobody waits for it.

    Raises:
        ApiError: 499, the client has gone; 503, the server ends.
    """
    while not (await asyncio.wait({task}, timeout=POLL_S))[0]:
        is_gone = await request.is_disconnected()
        if is_gone or ticket.stopped.is_set():
            raise CLIENT_GONE if is_gone else ApiError(503, "the request was stopped: the server ends", code="stopped")
        yield


def _in_thread(function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
    """Call it in a daemon thread, which the end of the process does not wait for."""
    future: Future[Any] = Future()

    def work() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name=function.__name__, daemon=True).start()
    return asyncio.wrap_future(future)


async def _bytes(request: Request, limit: int) -> bytes:
    """The body.

    Raises:
        ApiError: 413 where it is larger than the limit, 408 where it does not come in time.
    """
    too_large = ApiError(413, f"the body is larger than {limit} bytes", code="request_too_large")
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):  # half a body would otherwise hold its connection for ever
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_S:g} s", code="request_timeout") from None
    except ClientDisconnect:
        raise CLIENT_GONE from None
    return bytes(body)
