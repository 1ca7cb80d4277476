"""One server's connections, against a server that sends any bytes: how answers end, and what is no answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from posttrain_plugins.backends.openai.http import Endpoint, Reply
from posttrain_plugins.errors import InputError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
BODY = b'{"ok": 1}'


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


def talk(
    server: Server, work: Callable[[Endpoint], Awaitable[Any]], timeout_s: float = 5.0, max_retries: int = 0
) -> Any:
    async def run() -> Any:
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            url = f"http://127.0.0.1:{port}/v1"
            endpoint = Endpoint(url, "k", concurrency=8, timeout_s=timeout_s, max_retries=max_retries)
            try:
                return await work(endpoint)
            finally:
                await endpoint.aclose()

    return asyncio.run(run())


def post(endpoint: Endpoint) -> Awaitable[Reply]:
    return endpoint.post("chat/completions", {})


@pytest.mark.parametrize(
    "answer",
    [
        OK + BODY,
        OK + b'PAUSE{"ok"PAUSE: 1}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"ok"PAUSE\r\n4\r\n: 1}\r\n0\r\n\r\n',
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + BODY,
        b'HTTP/1.1 200 OK\r\n\r\n{"ok"PAUSE: 1}HANG UP',
        b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n" + BODY + b"HANG UP",
    ],
    ids=["length", "pieces", "chunked", "continue", "until the end", "1.0"],
)
def test_an_answer_is_read_however_it_ends(answer: bytes) -> None:
    server = Server([answer])
    assert talk(server, post) == Reply({"ok": 1})
    head = server.seen[0].decode()
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "\r\nAuthorization: Bearer k\r\n" in head
    assert head.endswith("\r\n\r\n{}")


def test_connections_are_kept() -> None:
    server = Server([OK + BODY] * 8)

    async def work(endpoint: Endpoint) -> None:
        for _ in range(2):
            await asyncio.gather(*(post(endpoint) for _ in range(4)))

    talk(server, work)
    assert server.connections == 4


def test_a_kept_connection_that_was_closed_meanwhile_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain_plugins.backends.openai.http.FIRST_PAUSE_S", 0.001)
    server = Server([OK + BODY, b"HANG UP", OK + BODY])

    async def work(endpoint: Endpoint) -> list[Reply]:
        return [await post(endpoint) for _ in range(2)]

    assert talk(server, work, max_retries=1) == [Reply({"ok": 1})] * 2
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HANG UP", "ServerDisconnectedError: "),
        (b"SSH-2.0\r\n\r\n", "ClientResponseError: .*Bad"),
        (OK + b'{"okHANG UP', "ClientPayloadError: "),
    ],
    ids=["nothing", "no HTTP", "half"],
)
def test_a_server_that_breaks_off_and_tells_no_models_either_is_gone(answer: bytes, error: str) -> None:
    with pytest.raises(InputError, match=f"(?s)is gone: {error}"):
        talk(Server([answer]), post, timeout_s=0.5)


def test_an_answer_that_takes_too_long_is_given_up_with_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain_plugins.backends.openai.http.FIRST_PAUSE_S", 0.001)
    server = Server([b"", OK + BODY])
    assert talk(server, post, timeout_s=0.5, max_retries=1) == Reply({"ok": 1})
    assert server.connections == 2


@pytest.mark.parametrize("header", ["3", "3.0"])
def test_retry_after_is_read(header: str) -> None:
    answer = f"HTTP/1.1 429 Slow\r\nRETRY-after: {header}\r\nContent-Length: 0\r\n\r\n"
    assert talk(Server([answer.encode()]), post) == Reply({}, "", 429, 3.0)


def test_a_moved_server_is_followed() -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: /v2/completions\r\nContent-Length: 0\r\n\r\n"
    server = Server([moved, OK + BODY])
    assert talk(server, lambda endpoint: endpoint.post("completions", {"a": 1})) == Reply({"ok": 1})
    assert server.seen[-1].startswith(b"POST /v2/completions ")
    assert json.loads(server.seen[-1].rpartition(b"\r\n")[2]) == {"a": 1}


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(InputError, match="line breaks"):
        Endpoint("http://host/v1", "key\nX-Other: 1", concurrency=1, timeout_s=1.0, max_retries=0)
