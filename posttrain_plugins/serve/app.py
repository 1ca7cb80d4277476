"""The routes. Each reads a request, lets the service answer in a thread, and writes the answer."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from posttrain_plugins.serve.fields import ApiError
from posttrain_plugins.serve.protocol import ApiRequest, RequestLimits, read_body, read_chat, read_completion
from posttrain_plugins.serve.replies import ApiReply, event
from posttrain_plugins.serve.service import ActiveRequest, Service
from posttrain_plugins.web.body import BodyRefused
from posttrain_plugins.web.body import read_body as read_raw_body

__all__ = ["RequestGate", "create_app"]

KEEP_ALIVE_S = 10.0
POLL_S = 0.2
CLIENT_GONE = ApiError(499, "the client has gone", code="client_gone")


@dataclass
class RequestGate:
    """Lets requests in, and knows which ones are in flight.

    Args:
        service: answers them.
        api_key: what clients must send; None lets everyone in.
        threads: requests that are answered at once; further ones wait in line.
        keep_alive_s: a stream that has nothing to send yet sends a comment this often.
    """

    service: Service
    api_key: str | None = None
    threads: int = 64
    keep_alive_s: float = KEEP_ALIVE_S

    def __post_init__(self) -> None:
        self.is_closing = False
        self.in_flight: set[object] = set()
        self.active: set[ActiveRequest] = set()
        self.slots = asyncio.Semaphore(self.threads)

    def check(self, request: Request) -> None:
        """Turn away who may not come in.

        Raises:
            ApiError: 401 without the key, 503 while the server ends.
        """
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # In constant time: how long `==` takes tells how many characters of a guess are right.
        is_right = scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), (self.api_key or "").encode())
        if self.api_key is not None and not is_right:
            raise ApiError(
                401, "the API key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key"
            )
        if self.is_closing:
            raise ApiError(503, "the server ends; ask another one", code="closing")

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Count a request as in flight until its answer is written."""
        mark = object()
        self.in_flight.add(mark)
        try:
            with self.service.model_thread.client():
                yield
        finally:
            self.in_flight.discard(mark)

    @contextmanager
    def answering(self, active: ActiveRequest) -> Iterator[asyncio.Task[ApiReply]]:
        """Give the task that makes the answer; where it is left before its end, it is cancelled."""

        async def answer() -> ApiReply:
            async with self.slots:
                reply: ApiReply = await _in_thread(self.service.answer, active)
                return reply

        task = asyncio.create_task(answer())
        self.active.add(active)
        try:
            yield task
        finally:
            self.active.discard(active)
            active.cancel()  # a thread cannot be ended, but it looks at this between two completions
            task.cancel()

    def cancel_all(self) -> None:
        """End with 503 what is still answered."""
        for active in list(self.active):
            active.cancel()

    async def respond(
        self, request: Request, read: Callable[[Mapping[str, Any], RequestLimits], ApiRequest]
    ) -> Response:
        """Answer a request whose body `read` understands, whole or as a stream."""
        self.check(request)
        with self.tracked():
            limits = self.service.limits
            asked = read(read_body(await _body(request, limits.max_body_bytes)), limits)
            # Checked before a stream begins: what is refused later could no longer have a status of its own.
            active = await _in_thread(self.service.admit, asked)
            if asked.is_streamed:
                # A proxy that buffers would hold back the comments that keep the connection open.
                headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
                return StreamingResponse(self._stream(request, active), media_type="text/event-stream", headers=headers)
            with self.answering(active) as task:
                async for _ in _until_done(request, active, task):
                    pass
                return JSONResponse(task.result().body())

    async def _stream(self, request: Request, active: ActiveRequest) -> AsyncIterator[str]:
        sent_at = time.monotonic()
        with self.tracked(), self.answering(active) as task:  # tracked again: `respond` has returned by now
            try:
                async for _ in _until_done(request, active, task):
                    if time.monotonic() - sent_at >= self.keep_alive_s:
                        sent_at = time.monotonic()
                        yield ": the answer is not finished\n\n"
                for one in task.result().events():
                    yield one
            except ApiError as error:
                yield event(error.to_json())


def create_app(gate: RequestGate) -> FastAPI:
    """Return the application; `gate.service` answers."""
    service = gate.service
    app = FastAPI(title="posttrain", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> Response:
        counts = {
            "in_flight": len(gate.in_flight),
            "waves": service.model_thread.waves,
            "completions": service.model_thread.completions,
        }
        state = {"status": "closing" if gate.is_closing else "ok", "models": list(service.models), **counts}
        return JSONResponse(state, 503 if gate.is_closing else 200)  # 503: a balancer takes it out

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        gate.check(request)
        return JSONResponse({"object": "list", "data": service.listing()})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        gate.check(request)
        found = next((row for row in service.listing() if row["id"] == name), None)
        if found is None:
            raise service.unknown(name)
        return JSONResponse(found)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await gate.respond(request, read_chat)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await gate.respond(request, read_completion)

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


async def _until_done(request: Request, active: ActiveRequest, task: asyncio.Task[ApiReply]) -> AsyncIterator[None]:
    """Tick until the answer is there, or until nobody waits for it.

    Raises:
        ApiError: 499, the client has gone; 503, the server ends.
    """
    while not (await asyncio.wait({task}, timeout=POLL_S))[0]:
        is_gone = await request.is_disconnected()
        if is_gone or active.stopped.is_set():
            raise CLIENT_GONE if is_gone else ApiError(503, "the request was stopped: the server ends", code="stopped")
        yield


def _in_thread(function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
    """Call it in a daemon thread: an executor's threads would hold up the end of the process."""
    future: Future[Any] = Future()

    def work() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name=function.__name__, daemon=True).start()
    return asyncio.wrap_future(future)


async def _body(request: Request, limit: int) -> bytes:
    """Read the body.

    Raises:
        ApiError: 413 where it is larger than the limit, 408 where it does not come in time.
    """
    try:
        return await read_raw_body(request, limit)
    except BodyRefused as refused:
        raise ApiError(refused.status, refused.message, code=refused.code) from None
    except ClientDisconnect:
        raise CLIENT_GONE from None
