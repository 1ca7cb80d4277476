"""The routes of the page. Each reads JSON, asks the desk in a thread, and writes JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from posttrain_plugins.annotate.desk import MOST_NAME_CHARS, Desk, Refusal
from posttrain_plugins.annotate.door import HEADERS, Door
from posttrain_plugins.annotate.page import About, html_of, policy_of
from posttrain_plugins.errors import InputError, PosttrainError
from posttrain_plugins.web.body import BodyRefused, read_body

__all__ = ["create_app"]

MOST_BODY_BYTES = 8 * 2**20  # a demonstration is a text; a model that goes on for ever is not one
MOST_HELD = 16

Values = Mapping[str, Any]


def create_app(desk: Desk, door: Door, about: About) -> FastAPI:
    """Return the application.

    Args:
        desk: answers.
        door: lets in.
        about: what all pages say, whatever is asked.
    """
    app = FastAPI(title="posttrain annotate", docs_url=None, redoc_url=None, openapi_url=None)
    html, headers = html_of(about.title), {**HEADERS, "Content-Security-Policy": policy_of()}

    @app.get("/")
    async def index() -> Response:
        # without the token too: it holds nothing but its own code, and trades the token for the cookie
        return HTMLResponse(html, headers=headers)

    @app.get("/favicon.ico")
    async def icon() -> Response:
        return Response(status_code=204, headers=HEADERS)

    @app.post("/api/enter")
    async def enter(request: Request) -> Response:
        values = await _values(request)
        if door.token is not None and not door.is_token(str(values.get("token", ""))):
            raise Refusal("token", "the token is wrong or missing: open the address that you were given, whole", 401)
        answer = _json({})
        if door.token is not None:
            answer.set_cookie(**door.cookie(_port(request)))  # type: ignore[arg-type]
        return answer

    def route(path: str, function: Callable[[Values], Mapping[str, Any]]) -> None:
        @app.post(f"/api/{path}", name=path)
        async def answer(request: Request) -> Response:
            if not door.is_open_to(request.headers, _port(request)):
                raise Refusal("token", "the token is missing: open the address that you were given, whole", 401)
            values = await _values(request)
            return _json(await run_in_threadpool(function, values))

    route("about", lambda given: {**about.to_json(), **desk.about(_who(given))})
    route("next", lambda given: desk.next(_who(given), _session(given), _held(given), given.get("more") is True))
    route("decide", lambda given: desk.decide(_who(given), given))
    route("undo", lambda given: desk.undo(_who(given), given))
    route(
        "look",
        lambda given: desk.look_back(_who(given), str(given.get("before", "")), 1 if given.get("step") == 1 else -1),
    )
    route("hold", lambda given: desk.keep_open(_who(given), _session(given), _held(given)))
    route("leave", lambda given: desk.leave(_session(given), _held(given)))
    route("draft", lambda given: desk.write_draft(_who(given), _text(given, "item"), _text(given, "text")))
    route("rest", lambda given: desk.rest(_text(given, "item"), _text(given, "part"), _count(given, "start")))

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return _error(error.status, error.code, error.message)

    @app.exception_handler(BodyRefused)
    async def unread(request: Request, error: BodyRefused) -> Response:
        return _error(error.status, error.code, error.message)

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> Response:
        return _error(400, "invalid", error.message)

    @app.exception_handler(PosttrainError)
    async def unwritten(request: Request, error: PosttrainError) -> Response:
        return _error(507, "not_written", str(error))  # the page keeps the decision, and sends it again

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, "no_route", f"{request.method} {request.url.path}: {error.detail}")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _error(500, "failed", f"the server failed: {type(error).__name__}")  # the traceback is on its stderr

    return app


def _error(status: int, code: str, message: str) -> Response:
    return _json({"error": {"code": code, "message": message}}, status)


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    # in ASCII: half of a surrogate pair, which a model may write, has no form in UTF-8
    return Response(json.dumps(value), status, HEADERS, "application/json")


def _port(request: Request) -> int:
    return int((request.scope.get("server") or ("", 0))[1] or 0)


async def _values(request: Request) -> Values:
    """Read a JSON object; a form of a foreign page cannot say that it sends one without being asked first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("not_json", f"the body is {kind or 'of no type'}, expected application/json", 415)
    try:
        values = json.loads(await read_body(request, MOST_BODY_BYTES))
    except ClientDisconnect:
        raise Refusal("gone", "the client has gone", 499) from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise Refusal("not_json", "the body is no JSON object", 400)
    return values


def _text(given: Values, name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str):
        raise Refusal("invalid", f"{name} is {value!r:.40}, expected text", 400)
    return value


def _count(given: Values, name: str) -> int:
    value = given.get(name)
    if type(value) is not int or value < 0:
        raise Refusal("invalid", f"{name} is {value!r:.40}, expected a number from 0", 400)
    return value


def _who(given: Values) -> str:
    name = " ".join(_text(given, "annotator").split())
    if not name or len(name) > MOST_NAME_CHARS or not name.isprintable():
        raise Refusal("name", f"a name has 1 to {MOST_NAME_CHARS} characters", 400)
    return name


def _session(given: Values) -> str:
    return _text(given, "session")[:MOST_NAME_CHARS]


def _held(given: Values) -> list[str]:
    held = given.get("held", [])
    if not isinstance(held, list) or len(held) > MOST_HELD or not all(isinstance(id, str) for id in held):
        raise Refusal("invalid", "held is no list of ids", 400)
    return held
