"""Bare connections to a server nearby: how answers end, what is asked again, and what stays with aiohttp."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from posttrain_plugins.backends.openai import wire
from posttrain_plugins.backends.openai.http import Endpoint
from posttrain_plugins.backends.openai.wire import Answer, Wire, is_plain
from posttrain_plugins.errors import InputError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class Server:
    """Answers its n-th request with the n-th of some bytes; where they end with `HANG UP`, it does so behind them."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self.answers = list(answers)
        self.seen: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.seen.append(head + await reader.readexactly(size))
                answer = self.answers.pop(0)
                for part in answer.removesuffix(b"HANG UP").split(b"PAUSE"):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.01)
                if answer.endswith(b"HANG UP"):
                    return
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def talk(server: Server, work: Callable[[Wire], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            wire = Wire(f"http://127.0.0.1:{port}/v1", {"X-Key": "k"}, 5.0)
            try:
                return await work(wire)
            finally:
                await wire.aclose()

    return asyncio.run(run())


def post(wire: Wire) -> Awaitable[Answer]:
    return wire.post("chat/completions", b"{}", 5.0)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"ok",
        OK + b"PAUSEoPAUSEk",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\noPAUSE\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"ok",
        b"HTTP/1.1 200 OK\r\n\r\noPAUSEkHANG UP",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nokHANG UP",
    ],
    ids=["length", "pieces", "chunked", "continue", "until the end", "1.0"],
)
def test_an_answer_is_read_however_it_ends(answer: bytes) -> None:
    server = Server([answer, OK + b"ok"])
    assert talk(server, post) == Answer(200, b"ok")
    assert server.seen[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Key: k\r\n" in server.seen[0]
    assert server.seen[0].endswith(b"\r\nContent-Length: 2\r\n\r\n{}")


def test_connections_are_kept_and_one_that_was_closed_meanwhile_costs_no_request() -> None:
    server = Server([OK + b"ok", OK + b"ok", b"HANG UP", OK + b"ok"])

    async def work(wire: Wire) -> list[Answer]:
        return [await post(wire) for _ in range(3)]

    assert talk(server, work) == [Answer(200, b"ok")] * 3
    assert server.connections == 2
    assert len(server.seen) == 4


def test_as_many_connections_as_requests_at_once() -> None:
    server = Server([OK + b"ok"] * 8)

    async def work(wire: Wire) -> None:
        for _ in range(2):
            await asyncio.gather(*(post(wire) for _ in range(4)))

    talk(server, work)
    assert server.connections == 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"HANG UP", "the server hung up"), (b"SSH-2.0\r\n\r\n", "is no HTTP"), (OK + b"oHANG UP", "within its answer")],
    ids=["nothing", "no HTTP", "half"],
)
def test_what_is_no_answer_is_an_error(answer: bytes, error: str) -> None:
    with pytest.raises(ConnectionError, match=error):
        talk(Server([answer]), post)


def test_an_answer_that_takes_too_long_is_given_up_with_its_connection() -> None:
    server = Server([b"", OK + b"ok"])

    async def work(wire: Wire) -> Answer:
        with pytest.raises(TimeoutError):
            await wire.post("completions", b"{}", 0.02)
        return await post(wire)

    assert talk(server, work) == Answer(200, b"ok")
    assert server.connections == 2


def test_retry_after_is_read() -> None:
    server = Server([b"HTTP/1.1 429 Slow\r\nRETRY-after: 3\r\nContent-Length: 0\r\n\r\n"])
    assert talk(server, post) == Answer(429, b"", "3")


def test_a_moved_server_is_followed() -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: /v2/completions\r\nContent-Length: 0\r\n\r\n"
    server = Server([moved, moved, b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"ok": 1}'])

    async def work(wire: Wire) -> Any:
        url = f"http://{wire._host}:{wire._port}/v1"
        endpoint = Endpoint(url, None, concurrency=1, timeout_s=5.0, max_retries=0)
        reply = await endpoint.post("completions", {"a": 1})
        await endpoint.aclose()
        return reply.payload

    assert talk(server, work) == {"ok": 1}
    assert server.seen[-1].startswith(b"POST /v2/completions ")
    assert json.loads(server.seen[-1].rpartition(b"\r\n")[2]) == {"a": 1}


def test_what_is_not_plain_stays_with_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(is_plain, ("http://localhost:8000/v1", "http://[::1]:8000/v1", "http://host")))
    others = (
        "https://host/v1",
        "http://user:pass@host/v1",
        "http://host/v1?key=1",
        "http://h\u00f6st/v1",
        "http://a b/v1",
    )
    assert not any(map(is_plain, others))
    monkeypatch.setattr(wire, "httptools", None)
    assert not is_plain("http://localhost:8000/v1")


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(InputError, match="line breaks"):
        Endpoint("http://host/v1", "key\nX-Other: 1", concurrency=1, timeout_s=1.0, max_retries=0)
