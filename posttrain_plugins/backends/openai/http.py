"""Posts JSON to an OpenAI-compatible server: connections kept, requests limited, retried and told apart when they fail.

A client that draws thousands of short completions is bound by the CPU time of a request. So a server nearby is asked
over bare connections (`wire.py`), every other one by aiohttp, which `datasets` brings along: of the clients that
`benchmarks/endpoint.py` compares (httpx, the `openai` client on httpx and on aiohttp, aiohttp itself) it takes by far
the least. No paper.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from posttrain_plugins.backends.openai.wire import Answer, Wire, is_plain
from posttrain_plugins.errors import InputError

__all__ = ["Endpoint", "Reply"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # between two tries, doubled each time: the `openai` client's own
LONGEST_RETRY_AFTER_S = 120.0  # what a server may ask for; it is asked again then, whatever it said
CONNECT_TIMEOUT_S = 30.0
KEY_HINT = "give api_key=, or set OPENAI_API_KEY"
PASSING = frozenset({0, 408, 409, 425, 429})  # and all from 500 on: worth another try; 0 is no answer at all
KEY_REFUSED = frozenset({401, 403})
MOVED = range(300, 400)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: a payload, or an `error` with its HTTP status (0: no answer that could be read)."""

    payload: Mapping[str, Any]
    error: str | None = None
    status: int = 200
    retry_after_s: float | None = None

    @property
    def is_passing(self) -> bool:
        """A failure that may be over at the next try."""
        return self.error is not None and (self.status in PASSING or self.status >= 500 or self.status == 200)


@dataclass(frozen=True, slots=True)
class _Lane:
    """What belongs to one event loop."""

    session: aiohttp.ClientSession
    wire: Wire | None
    slots: asyncio.Semaphore


class Endpoint:
    """One server.

    Args:
        base_url: with its version, such as `http://localhost:8000/v1`.
        api_key: sent as bearer token; None sends none.
        concurrency: requests in flight at most.
        timeout_s: for one try of one request.
        max_retries: tries after the first, for connection errors, timeouts, 408, 409, 425, 429, 5xx and answers that
            are no JSON. A `Retry-After` is honoured; a request that waits keeps its place, so that a server that is
            overloaded is asked less.
    """

    def __init__(
        self, base_url: str, api_key: str | None, *, concurrency: int, timeout_s: float, max_retries: int
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            if not re.fullmatch("[!-~]+", api_key):
                raise InputError("the API key has blanks, line breaks or other odd characters in it", hint=KEY_HINT)
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._proxy = _proxy(
            self.base_url
        )  # here, because aiohttp's `trust_env` looks it up for each request, in threads
        self._jitter = random.Random()
        self._lanes: dict[asyncio.AbstractEventLoop, tuple[AsyncGenerator[_Lane, None], _Lane]] = {}

    async def post(self, route: str, body: Mapping[str, Any]) -> Reply:
        """Ask, again where that may help.

        Raises:
            InputError: for what no other request would survive either: the key is refused, there is no such route or
                model, the quota is used up, the server is gone.
        """
        data = json.dumps(body, ensure_ascii=False).encode()
        lane = await self._lane()
        async with lane.slots:
            reply = await self._try(lane, route, data)
            for attempt in range(self.max_retries):
                if not reply.is_passing or _is_out_of_quota(reply):
                    break
                await asyncio.sleep(self._pause_s(attempt, reply))
                reply = await self._try(lane, route, data)
        if reply.error is not None:
            await self._raise_if_hopeless(route, reply)
        return reply

    async def check(self) -> None:
        """See that the server is there and takes the key, at once and without retries.

        Raises:
            InputError: where it does not.
        """
        reply = await self._models()
        if reply.status == 0:
            message = f"cannot reach the endpoint {self.base_url}: {reply.error}"
            raise InputError(message, hint="is the server up, and does the URL end in its version, such as /v1?")
        if reply.status in KEY_REFUSED:
            raise InputError(_key_refused(self.base_url, reply), hint=KEY_HINT)

    async def models(self) -> list[str]:
        """The names of the models that the server lists; empty where it lists none."""
        rows = (await self._models()).payload.get("data")
        return [str(row["id"]) for row in rows or () if isinstance(row, Mapping) and "id" in row]

    async def aclose(self) -> None:
        """Close this event loop's connections. `asyncio.run` does so by itself when it ends."""
        held = self._lanes.get(asyncio.get_running_loop())
        if held is not None:
            await held[0].aclose()

    async def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        if loop not in self._lanes:
            opened = self._open(loop)
            self._lanes[loop] = opened, await anext(opened)  # suspends nothing, so that no task comes between
        return self._lanes[loop][1]

    async def _open(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[_Lane, None]:
        """A generator, because an event loop that ends closes its open generators, and with them the connections."""
        timeout = aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=min(self.timeout_s, CONNECT_TIMEOUT_S))
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the slots limit already
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=timeout,
        )
        is_direct = self._proxy is None and is_plain(self.base_url)
        wire = Wire(self.base_url, self._headers, min(self.timeout_s, CONNECT_TIMEOUT_S)) if is_direct else None
        try:
            async with session:
                yield _Lane(session, wire, asyncio.Semaphore(self.concurrency))
        finally:
            self._lanes.pop(loop, None)
            if wire is not None:
                await wire.aclose()

    async def _try(self, lane: _Lane, route: str, data: bytes) -> Reply:
        try:
            answer = await lane.wire.post(route, data, self.timeout_s) if lane.wire is not None else None
            if answer is None or answer.status in MOVED:
                async with lane.session.post(f"{self.base_url}/{route}", data=data, proxy=self._proxy) as response:
                    answer = await _answer(response)
            return _read(answer)
        except TimeoutError:
            return Reply({}, f"no answer within {self.timeout_s:g} s", status=0)
        except (aiohttp.ClientError, OSError) as error:
            return Reply({}, f"{type(error).__name__}: {error}", status=0)

    async def _models(self) -> Reply:
        session = (await self._lane()).session
        try:
            async with session.get(f"{self.base_url}/models", proxy=self._proxy) as response:
                return _read(await _answer(response))
        except (TimeoutError, aiohttp.ClientError) as error:
            return Reply({}, f"{type(error).__name__}: {error}", status=0)

    def _pause_s(self, attempt: int, reply: Reply) -> float:
        if reply.retry_after_s is not None:
            return min(reply.retry_after_s, LONGEST_RETRY_AFTER_S)
        return min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S) * self._jitter.uniform(0.75, 1.0)

    async def _raise_if_hopeless(self, route: str, reply: Reply) -> None:
        if reply.status in KEY_REFUSED:
            raise InputError(_key_refused(self.base_url, reply), hint=KEY_HINT)
        if reply.status in (404, 405):
            known = ", ".join(await self.models()) or "none that it lists"
            message = f"{self.base_url}/{route} answered {reply.status}: {reply.error}"
            raise InputError(message, hint=f"the URL should end in the version, such as /v1; models there: {known}")
        if _is_out_of_quota(reply):
            raise InputError(f"{self.base_url} refuses more requests: {reply.error}", hint="top up, then run again")
        if reply.status == 0 and (await self._models()).status == 0:
            message = f"the endpoint {self.base_url} is gone: {reply.error}"
            raise InputError(message, hint="start it again, then run again: what was answered is in the log")


def _proxy(url: str) -> str | None:
    """As HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _key_refused(base_url: str, reply: Reply) -> str:
    return f"{base_url} refused the API key: {reply.status} {reply.error}"


def _is_out_of_quota(reply: Reply) -> bool:
    return reply.status == 429 and "insufficient_quota" in (reply.error or "")


async def _answer(response: aiohttp.ClientResponse) -> Answer:
    return Answer(response.status, await response.read(), response.headers.get("Retry-After"))


def _read(answer: Answer) -> Reply:
    """A payload where the server says 200 and sends a JSON object, else the failure in the server's own words."""
    try:
        payload = json.loads(answer.raw)
    except ValueError:
        payload = answer.raw.decode(errors="replace")
    if answer.status == 200:
        if isinstance(payload, dict):
            return Reply(payload)
        return Reply({}, f"the answer is no JSON object: {str(payload)[:200]!r}")
    return Reply({}, _message(payload), answer.status, _retry_after_s(answer.retry_after))


def _message(payload: Any) -> str:
    """OpenAI says `error.message` (and `code`), FastAPI `detail`, others send a string."""
    found = payload
    if isinstance(payload, Mapping):
        found = payload.get("error") or payload.get("detail") or payload.get("message") or payload
    if isinstance(found, Mapping):
        code = f" ({found['code']})" if found.get("code") else ""
        found = f"{found.get('message', dict(found))}{code}"
    return str(found)[:500]


def _retry_after_s(header: str | None) -> float | None:
    """Seconds, or a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
