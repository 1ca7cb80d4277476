"""One server's connections, against a server that sends any bytes: how answers end, and what is no answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from posttrain_plugins.backends.openai.http import Endpoint, Reply
from posttrain_plugins.errors import InputError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n"
BODY = b'{"choices": [{}]}'
SAID = Reply({"choices": [{}]})


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
        OK + b'PAUSE{"choices"PAUSE: [{}]}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n{"choices"PAUSE\r\n7\r\n: [{}]}\r\n0\r\n\r\n',
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + BODY,
        b'HTTP/1.1 200 OK\r\n\r\n{"choices"PAUSE: [{}]}HANG UP',
        b"HTTP/1.0 200 OK\r\nContent-Length: 17\r\n\r\n" + BODY + b"HANG UP",
    ],
    ids=["length", "pieces", "chunked", "continue", "until the end", "1.0"],
)
def test_an_answer_is_read_however_it_ends(answer: bytes) -> None:
    server = Server([answer])
    assert talk(server, post) == SAID
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

    assert talk(server, work, max_retries=1) == [SAID] * 2
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
    assert talk(server, post, timeout_s=0.5, max_retries=1) == SAID
    assert server.connections == 2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "-1"}, 0.0),
        ({"retry-after-ms": "250", "Retry-After": "3"}, 0.25),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_when_to_ask_again_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert Reply.read(429, b"slow down", headers, True) == Reply({}, "slow down", 429, seconds)


LIMITED = {"message": "Rate limit exceeded", "code": 429}


@pytest.mark.parametrize(
    ("payload", "error", "status", "is_passing"),
    [
        ({"error": LIMITED}, "Rate limit exceeded", 429, True),
        ({"error": {**LIMITED, "code": "429"}}, "Rate limit exceeded", 429, True),
        ({"error": {**LIMITED, "code": "rate_limit_exceeded"}}, "Rate limit exceeded (rate_limit_exceeded)", 429, True),
        ({"error": {"message": "No", "type": "server_error", "code": None}}, "No (server_error)", 500, True),
        ({"choices": None, "error": {"message": "Upstream error", "code": 502}}, "Upstream error", 502, True),
        (
            {"choices": [{"error": {"message": "Provider failed", "code": 502}, "text": ""}]},
            "Provider failed",
            502,
            True,
        ),
        ({"error": {"message": "too long", "code": "context_length_exceeded"}}, "too long (context_len", 400, False),
        ({"error": {"message": "Insufficient credits", "code": 402}}, "Insufficient credits", 402, False),
        ({"error": "busy"}, "busy", 200, True),
        ({"error": {"message": "odd", "code": 7}}, "odd (7)", 200, True),
        ({"choices": None}, "the answer has no choices: ", 200, True),
        ({"choices": []}, "the answer has no choices: ", 200, True),
        ({"choices": {}}, "the answer has no choices: ", 200, True),
        ({"id": "x"}, "the answer has no choices: ", 200, True),
        ([], "the answer is no JSON object: ", 200, True),
        ({"choices": [{}, {"error": LIMITED}], "error": None}, None, 200, False),
    ],
)
def test_a_failure_under_status_200_is_one(payload: Any, error: str | None, status: int, is_passing: bool) -> None:
    reply = Reply.read(200, json.dumps(payload).encode(), {}, True)
    assert (reply.status, reply.is_passing) == (status, is_passing)
    assert (reply.error or "").startswith(error) if error else reply == Reply(payload)


def status(code: int, message: str) -> bytes:
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%s" % (code, len(body), body)


def test_a_key_without_credits_is_told_at_once() -> None:
    server = Server([status(402, "Insufficient credits")])
    with pytest.raises(InputError, match=r"wants to be paid .*: 402 Insufficient credits") as caught:
        talk(server, post, max_retries=3)
    assert "credits" in str(caught.value.hint)
    assert len(server.seen) == 1


def test_a_rate_limit_at_the_first_request_ends_the_run_and_later_only_its_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("posttrain_plugins.backends.openai.http.FIRST_PAUSE_S", 0.001)
    limited = status(429, "Rate limit exceeded: free-models-per-day")
    with pytest.raises(InputError, match="answers no request of this key for now: 429 Rate limit") as caught:
        talk(Server([limited] * 3), post, max_retries=2)
    assert "rate limit" in str(caught.value.hint)

    async def work(endpoint: Endpoint) -> list[Reply]:
        return [await post(endpoint) for _ in range(2)]

    first, later = talk(Server([OK + BODY, *[limited] * 3]), work, max_retries=2)
    assert first == SAID
    assert later == Reply({}, "Rate limit exceeded: free-models-per-day", 429)


def test_after_a_rate_limit_it_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.extend([seconds] if seconds > 0.1 else [])  # the server pauses, too, for less

    async def work(endpoint: Endpoint) -> Reply:
        with monkeypatch.context() as patched:
            patched.setattr("posttrain_plugins.backends.openai.http.asyncio.sleep", sleep)
            return await post(endpoint)

    busy, limited = status(503, "busy"), status(429, "slow down")
    assert talk(Server([busy, limited, limited, limited, limited, OK + BODY]), work, max_retries=5) == SAID
    assert 0.75 * 0.5 <= pauses[0] <= 0.5
    assert sum(pauses[1:]) >= 4.0 * 0.75 * (1 + 2 + 4 + 8)


def test_a_list_of_models_needs_no_choices() -> None:
    assert Reply.read(200, b'{"data": []}', {}, False) == Reply({"data": []})


def test_a_moved_server_is_followed() -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: /v2/completions\r\nContent-Length: 0\r\n\r\n"
    server = Server([moved, OK + BODY])
    assert talk(server, lambda endpoint: endpoint.post("completions", {"a": 1})) == SAID
    assert server.seen[-1].startswith(b"POST /v2/completions ")
    assert json.loads(server.seen[-1].rpartition(b"\r\n")[2]) == {"a": 1}


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(InputError, match="line breaks"):
        Endpoint("http://host/v1", "key\nX-Other: 1", concurrency=1, timeout_s=1.0, max_retries=0)
