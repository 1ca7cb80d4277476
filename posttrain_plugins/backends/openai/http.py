"""Posts JSON to an OpenAI-compatible server: connections kept, requests limited, retried and told apart when they fail.

A client that draws thousands of short completions is bound by the CPU time of a request. aiohttp, which `datasets`
brings along, takes by far the least of the clients that `benchmarks/endpoint.py` compares (httpx, the `openai` client
on httpx and on aiohttp, aiohttp itself). No paper.
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
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from posttrain_plugins.errors import InputError

__all__ = ["Endpoint", "Reply"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # between two tries, doubled each time: the `openai` client's own
PATIENCE = 4.0  # times as long after 429: limits are by the minute, and five tries are to reach over one
LONGEST_RETRY_AFTER_S = 120.0  # what a server may ask for; it is asked again then, whatever it said
CONNECT_TIMEOUT_S = 30.0
KEY_HINT = "give api_key=, or set OPENAI_API_KEY"
PASSING = frozenset({0, 408, 409, 425, 429})  # and all from 500 on: worth another try; 0 is no answer at all
KEY_REFUSED = frozenset({401, 403})
CODES = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "overloaded_error": 503,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
}
"""Status of the errors that servers name by a word; one that is named otherwise is tried again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: a payload, or an `error` with its status.

    Args:
        payload: the JSON object; empty beside an error.
        error: what failed, in the server's own words.
        status: of HTTP, or the one that an error under status 200 names; 0 where no answer could be read.
        retry_after_s: when the server wants to be asked again.
    """

    payload: Mapping[str, Any]
    error: str | None = None
    status: int = 200
    retry_after_s: float | None = None

    @classmethod
    def read(cls, status: int, raw: bytes, headers: Mapping[str, str], is_completion: bool) -> Reply:
        """Read what a server sent.

        A gateway has begun to answer with status 200 before it knows whether the model behind it will: then an error
        stands in the payload, beside no choices or in each of them. That is a failure like any other.

        Args:
            status: of HTTP.
            raw: the body.
            headers: `Retry-After` (RFC 9110, section 10.2.3) and OpenAI's `retry-after-ms` are read.
            is_completion: the payload must have choices.
        """
        try:
            payload = json.loads(raw)
        except ValueError:
            payload = raw.decode(errors="replace")
        choices = payload.get("choices") if isinstance(payload, dict) else None
        found: Any = None
        if status != 200:
            found = payload or f"status {status} without a word"
        elif not isinstance(payload, dict):
            found = f"the answer is no JSON object: {str(payload)[:200]!r}"
        elif payload.get("error"):
            found = payload
        elif is_completion and not (isinstance(choices, list) and choices):
            found = f"the answer has no choices: {str(payload)[:200]}"
        elif is_completion and all(isinstance(choice, dict) and choice.get("error") for choice in choices or ()):
            found = (choices or [{}])[0]
        if found is None:
            return cls(payload)
        if isinstance(found, dict):  # OpenAI says `error.message` (and `code`), FastAPI `detail`, others send a string
            found = found.get("error") or found.get("detail") or found.get("message") or found
        if isinstance(found, dict):
            code = found.get("code") or found.get("type")
            if status == 200:
                named = str(code)
                status = int(named) if re.fullmatch("[45][0-9][0-9]", named) else CODES.get(named, 200)
            told = f" ({code})" if code and str(code) != str(status) else ""
            found = f"{found.get('message', found)}{told}"
        return cls({}, str(found)[:500], status, _retry_after_s(headers))

    @property
    def is_passing(self) -> bool:
        """A failure that may be over at the next try."""
        return self.error is not None and (self.status in PASSING or self.status >= 500 or self.status == 200)

    @property
    def is_out_of_quota(self) -> bool:
        """No more is to be had for this key, however long one waits."""
        return self.status == 402 or (self.status == 429 and "insufficient_quota" in (self.error or ""))


@dataclass(frozen=True, slots=True)
class _Connections:
    """Those of one event loop, and the requests in flight on them."""

    session: aiohttp.ClientSession
    slots: asyncio.Semaphore
    timeout_s: float
    proxy: str | None

    async def send(self, method: str, url: str, data: bytes | None = None) -> Reply:
        """Ask once; what goes wrong below HTTP is a reply of status 0."""
        try:
            async with self.session.request(method, url, data=data, proxy=self.proxy) as response:
                return Reply.read(response.status, await response.read(), response.headers, method == "POST")
        except TimeoutError:
            return Reply({}, f"no answer within {self.timeout_s:g} s", status=0)
        except (aiohttp.ClientError, OSError) as error:
            return Reply({}, f"{type(error).__name__}: {error}", status=0)


class Endpoint:
    """One server.

    Args:
        base_url: with its version, such as `http://localhost:8000/v1`.
        api_key: sent as bearer token; None sends none.
        concurrency: requests in flight at most.
        timeout_s: for one try of one request.
        max_retries: tries after the first, for connection errors, timeouts, 408, 409, 425, 429, 5xx and answers
            without choices. A `Retry-After` is honoured; a request that waits keeps its place, so that a server that is
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
        # HTTP_PROXY and NO_PROXY are read here: aiohttp's `trust_env` reads them for each request, in threads
        parts, proxies = urllib.parse.urlsplit(self.base_url), urllib.request.getproxies()
        is_direct = urllib.request.proxy_bypass(parts.netloc)
        self._proxy = None if is_direct else proxies.get(parts.scheme) or proxies.get("all")
        self._jitter = random.Random()
        self._has_answered = False
        self._held: dict[asyncio.AbstractEventLoop, tuple[AsyncGenerator[_Connections, None], _Connections]] = {}

    async def post(self, route: str, body: Mapping[str, Any]) -> Reply:
        """Ask, again where that may help.

        Raises:
            InputError: for what no other request would survive either: the key is refused, there is no such route or
                model, the quota is used up, the server is gone.
        """
        data = json.dumps(body, ensure_ascii=False).encode()
        connections = await self._connections()
        async with connections.slots:  # held through the pauses: whoever waits does not make room for another request
            reply = await connections.send("POST", f"{self.base_url}/{route}", data)
            for attempt in range(self.max_retries):
                if not reply.is_passing or reply.is_out_of_quota:
                    break
                pause_s = min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S) * self._jitter.uniform(0.75, 1.0)
                if reply.status == 429:
                    pause_s *= PATIENCE
                if reply.retry_after_s is not None:
                    pause_s = min(reply.retry_after_s, LONGEST_RETRY_AFTER_S)
                await asyncio.sleep(pause_s)
                reply = await connections.send("POST", f"{self.base_url}/{route}", data)
        if reply.error is not None:
            await self._raise_if_hopeless(route, reply)
        self._has_answered = self._has_answered or reply.error is None
        return reply

    async def check(self) -> None:
        """See that the server is there and takes the key, at once and without retries.

        Raises:
            InputError: where it does not.
        """
        reply = await (await self._connections()).send("GET", f"{self.base_url}/models")
        if reply.status == 0:
            message = f"cannot reach the endpoint {self.base_url}: {reply.error}"
            raise InputError(message, hint="is the server up, and does the URL end in its version, such as /v1?")
        if reply.status in KEY_REFUSED:
            raise InputError(f"{self.base_url} refused the API key: {reply.status} {reply.error}", hint=KEY_HINT)

    async def models(self) -> list[str]:
        """Return the names of the models that the server lists; none where it lists none."""
        reply = await (await self._connections()).send("GET", f"{self.base_url}/models")
        rows = reply.payload.get("data")
        return [str(row["id"]) for row in rows or () if isinstance(row, Mapping) and "id" in row]

    async def aclose(self) -> None:
        """Close this event loop's connections. `asyncio.run` does so by itself when it ends."""
        held = self._held.get(asyncio.get_running_loop())
        if held is not None:
            await held[0].aclose()

    async def _connections(self) -> _Connections:
        """Return this event loop's connections."""
        loop = asyncio.get_running_loop()

        # A generator, because an event loop that ends closes its open generators, and with them the connections.
        async def hold() -> AsyncGenerator[_Connections, None]:
            timeout = aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=min(self.timeout_s, CONNECT_TIMEOUT_S))
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the slots limit already
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=timeout,
            )
            try:
                async with session:
                    yield _Connections(session, asyncio.Semaphore(self.concurrency), self.timeout_s, self._proxy)
            finally:
                self._held.pop(loop, None)

        if loop not in self._held:
            opened = hold()
            self._held[loop] = opened, await anext(opened)  # suspends nothing, so that no task comes between
        return self._held[loop][1]

    async def _raise_if_hopeless(self, route: str, reply: Reply) -> None:
        if reply.status in KEY_REFUSED:
            raise InputError(f"{self.base_url} refused the API key: {reply.status} {reply.error}", hint=KEY_HINT)
        if reply.status in (404, 405):
            known = ", ".join(await self.models()) or "none that it lists"
            message = f"{self.base_url}/{route} answered {reply.status}: {reply.error}"
            raise InputError(message, hint=f"the URL should end in the version, such as /v1; models there: {known}")
        if reply.is_out_of_quota:
            message = f"{self.base_url} wants to be paid before it answers more requests: {reply.status} {reply.error}"
            raise InputError(
                message, hint="add credits there or give another api_key=, then run again: the log goes on"
            )
        if reply.status == 429 and not self._has_answered:  # later it costs the samples that it hits, and no others
            message = f"{self.base_url} answers no request of this key for now: 429 {reply.error}"
            raise InputError(message, hint="wait for its rate limit to end, or give another api_key= or model")
        if reply.status == 0:
            models = await (await self._connections()).send("GET", f"{self.base_url}/models")
            if models.status == 0:
                message = f"the endpoint {self.base_url} is gone: {reply.error}"
                raise InputError(message, hint="start it again, then run again: what was answered is in the log")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long to wait; None where the headers say nothing that can be read."""
    milliseconds, seconds = headers.get("retry-after-ms"), headers.get("Retry-After")
    with suppress(TypeError, ValueError):
        return max(float(milliseconds) / 1000, 0.0)  # type: ignore[arg-type]
    with suppress(TypeError, ValueError):
        return max(float(seconds), 0.0)  # type: ignore[arg-type]
    with suppress(TypeError, ValueError):
        return max(parsedate_to_datetime(seconds).timestamp() - time.time(), 0.0)  # type: ignore[arg-type]
    return None
