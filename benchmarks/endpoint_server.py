"""A fake OpenAI-compatible endpoint that costs next to nothing: fixed service time, limited slots, exact counters.

It speaks just enough HTTP/1.1, because a web framework would be the bottleneck of what is measured. `/v1` draws `n`
completions in one request, `/single/v1` ignores `n`; `GET /counters` tells and resets what was served.

    python benchmarks/endpoint_server.py --port 8901
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
from collections import deque
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Service"]

FILLER = " ".join(["and so we add the next digit and keep the last one,"] * 6)  # about as long as a short solution
COMPLETION_TOKENS = 64


@dataclass
class Service:
    """What is in service and what waits; one for all connections.

    Args:
        service_s: how long a request is in service.
        slots: how many may be in service at once.
        is_per_completion: a request takes a slot for each of its completions, not one for itself.
    """

    service_s: float
    slots: int
    is_per_completion: bool
    busy: int = 0
    waiting: deque[tuple[Connection, str, dict[str, Any]]] = field(default_factory=deque)
    counters: dict[str, int] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def enter(self, connection: Connection, path: str, body: dict[str, Any]) -> None:
        self.waiting.append((connection, path, body))
        self._start()

    def _start(self) -> None:
        while self.waiting:
            connection, path, body = self.waiting[0]
            size = min(body.get("n", 1), self.slots) if self.is_per_completion else 1
            if self.busy + size > self.slots:
                return
            self.waiting.popleft()
            self.busy += size
            asyncio.get_running_loop().call_later(self.service_s, self._finish, size, connection, path, body)

    def _finish(self, size: int, connection: Connection, path: str, body: dict[str, Any]) -> None:
        self.busy -= size
        self._start()
        n = 1 if path.startswith("/single") else body.get("n", 1)
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        self.count(requests=1, completions=n, prompt_tokens=prompt, completion_tokens=COMPLETION_TOKENS * n)
        connection.send(self._answer(body, n, prompt))

    def _answer(self, body: dict[str, Any], n: int, prompt: int) -> dict[str, Any]:
        noise = random.Random(body["seed"]) if "seed" in body else self.rng
        hot = body.get("temperature") != 0
        digits = [noise.choice((7, 7, 7, 3, 4)) if hot else 7 for _ in range(n)]
        texts = [f"{FILLER} {noise.random() if hot else ''} The answer is {digit}" for digit in digits]
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for i, text in enumerate(texts)
        ]
        written = COMPLETION_TOKENS * n
        usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        about = {"id": "x", "object": "chat.completion", "created": 1, "model": "fake"}
        return {**about, "choices": choices, "usage": usage}

    def count(self, **more: int) -> None:
        for name, value in more.items():
            self.counters[name] = self.counters.get(name, 0) + value

    def take_counters(self) -> dict[str, Any]:
        taken, self.counters = self.counters, {}
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {**taken, "cpu_s": used.ru_utime + used.ru_stime}


class Connection(asyncio.Protocol):
    """One connection; answers go out in the order in which they are ready (clients wait for each before the next)."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + size:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + size], self.buffer[end + 4 + size :]
            self._handle(head.split(b" ", 2)[1].decode(), body)

    def send(self, answer: dict[str, Any]) -> None:
        raw = json.dumps(answer).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw)
        self.transport.write(head + raw)

    def _handle(self, path: str, body: bytes) -> None:
        if path.endswith("/chat/completions"):
            self.service.enter(self, path, json.loads(body))
        elif path == "/counters":
            self.send(self.service.take_counters())
        else:
            self.send({"data": [{"id": "fake"}]})


async def serve(options: argparse.Namespace) -> None:
    service = Service(options.service_ms / 1e3, options.slots, options.slot_per == "completion")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", options.port, backlog=4096)
    await server.serve_forever()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--service-ms", type=float, default=50.0)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--slot-per", choices=("request", "completion"), default="request")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(serve(_options()))
