"""Plain HTTP over kept connections, for thousands of short answers of a server nearby.

A general client (aiohttp) spends several times the CPU time that such a request needs: redirects, cookies, proxies and
streamed bodies are thought of each time. Here a request is one write, and llhttp (`httptools`) reads the answer. What
is not plain stays with aiohttp: TLS, proxies, redirects, and where httptools is not installed. No paper.
"""

from __future__ import annotations

import asyncio
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

try:
    import httptools
except ImportError:  # the extra `openai` brings it
    httptools = None  # type: ignore[assignment]

__all__ = ["Answer", "Wire", "is_plain"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said; of its headers the one that matters."""

    status: int
    raw: bytes
    retry_after: str | None = None


def is_plain(base_url: str) -> bool:
    """Whether a `Wire` can ask this server, if no proxy stands between."""
    return (
        httptools is not None
        and re.fullmatch(r"http://[!-~]+", base_url) is not None
        and not set("@?#") & set(base_url)
    )


class Wire:
    """Connections to one server, within one event loop.

    Args:
        base_url: of a server that `is_plain`.
        headers: sent with each request.
        timeout_s: for a connection to be opened.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        parts = urllib.parse.urlsplit(base_url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path
        self._timeout_s = timeout_s
        lines = [f"Host: {parts.netloc}", "Accept: */*", *(f"{name}: {value}" for name, value in headers.items())]
        self._head = "".join(f"{line}\r\n" for line in lines)
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def post(self, route: str, data: bytes, timeout_s: float) -> Answer:
        """Ask; again at once where a kept connection turns out to be closed.

        Raises:
            TimeoutError: no answer within `timeout_s`.
            OSError: the server cannot be reached, hangs up, or does not speak HTTP.
        """
        head = f"POST {self._path}/{route} HTTP/1.1\r\n{self._head}Content-Length: {len(data)}\r\n\r\n"
        message = head.encode("latin-1") + data
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_open:
                continue
            try:
                return await self._ask(connection, message, timeout_s)
            except HungUp:
                continue
        return await self._ask(await self._open(), message, timeout_s)

    async def aclose(self) -> None:
        """Hang up, and see all connections closed."""
        for connection in self._all:
            connection.transport.abort()
        while self._all:
            await asyncio.sleep(0)

    async def _open(self) -> _Connection:
        async with asyncio.timeout(self._timeout_s):
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: _Connection(self._all), self._host, self._port)
        return connection

    async def _ask(self, connection: _Connection, message: bytes, timeout_s: float) -> Answer:
        answered = connection.send(message)
        timer = asyncio.get_running_loop().call_later(timeout_s, connection.fail, TimeoutError())
        try:
            answer = await answered
        except BaseException:
            connection.transport.abort()
            raise
        finally:
            timer.cancel()
        if connection.is_open:
            self._idle.append(connection)
        return answer


class HungUp(ConnectionError):
    """The server closed the connection before it answered anything."""


class _Connection(asyncio.Protocol):
    """One request at a time; the methods named `on_...` are httptools' callbacks."""

    transport: asyncio.Transport

    def __init__(self, everyone: set[_Connection]) -> None:
        self.is_open = True
        self._everyone = everyone
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[Answer] | None = None
        self._begin()

    def send(self, message: bytes) -> asyncio.Future[Answer]:
        self._begin()
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        return self._answered

    def fail(self, error: Exception) -> None:
        self.is_open = False
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

    def _begin(self) -> None:
        self._parts: list[bytes] = []
        self._retry_after: str | None = None
        self._has_begun = self._has_length = self._has_headers = False

    # asyncio's callbacks

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._everyone.add(self)

    def data_received(self, data: bytes) -> None:
        if self._answered is None or self._answered.done():  # nothing was asked: it ends, as servers do when bored
            self.is_open = False
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(ConnectionError(f"the answer is no HTTP: {error}"))
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._everyone.discard(self)
        self.is_open = False
        if error is None and self._has_headers and not self._has_length:
            self._finish()  # an answer without a length ends with its connection
        elif self._has_begun:
            self.fail(error or ConnectionError("the server hung up within its answer"))
        else:
            self.fail(HungUp(str(error or "the server hung up")))

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._has_length |= name in (b"content-length", b"transfer-encoding")
        if name == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._has_headers = self._parser.get_status_code() >= 200  # before stands `100 Continue`

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._has_headers:
            self.is_open = self._parser.should_keep_alive()
            self._finish()

    def _finish(self) -> None:
        if self._answered is not None and not self._answered.done():
            status = self._parser.get_status_code()
            self._answered.set_result(Answer(status, b"".join(self._parts), self._retry_after))
