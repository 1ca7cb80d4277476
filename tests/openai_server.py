"""An OpenAI-compatible server with knobs for every trap, and how its backend is asked."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from posttrain_plugins.backends.openai.backend import OpenAIBackend
from posttrain_plugins.types import Completion, Generate, SamplingParams, Usage

WORDS = [f"w{i}" for i in range(100)]
CHAT = [{"role": "user", "content": "Count to ten."}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
KNOWN = {"model", "messages", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "n", "logprobs", "tools"}
KNOWN |= {"top_logprobs"}
CONTINUE = {"add_generation_prompt", "continue_final_message"}


@dataclass
class FakeServer:
    """An OpenAI-compatible server that misbehaves as its knobs say; a word is a token, a template costs 3 a message.

    `n`: many, ignored, copies. `sampling`: temperature, generation_config, never. `seed`: own, global, ignored.
    `prefill`: fields, plain, closed, refused. `stop`: told, kept, silent, ignored. `script`: what to answer before
    anything else, as `(status, headers, body)`.
    """

    n: str = "many"
    sampling: str = "temperature"
    seed: str = "own"
    prefill: str = "fields"
    stop: str = "told"
    has_logprobs: bool = True
    has_tools: bool = True
    has_chat: bool = True
    has_text: bool = True
    counts: bool = True
    counts_all: bool = True
    models_there: tuple[str, ...] = ("fake", "other")
    answers_to: tuple[str, ...] = ("fake",)
    is_strict: bool = False
    limit_field: str = "max_tokens"
    seed_field: str = "seed"
    api_key: str | None = None
    hidden_tokens: int = 0
    service_s: float = 0.0
    script: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    global_rng: random.Random = field(default_factory=lambda: random.Random(0))
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.times.append(time.monotonic())
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            if self.script:
                status, headers, text = self.script.pop(0)
                return web.Response(status=status, headers=headers, text=text)
            return await self.answer(request.path, body, request.headers.get("Authorization"))
        finally:
            self.in_flight -= 1

    async def models(self, request: web.Request) -> web.Response:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return _error(401, "Incorrect API key provided")
        return web.json_response({"data": [{"id": name} for name in self.models_there]})

    async def answer(self, path: str, body: dict[str, Any], key: str | None) -> web.Response:
        if self.api_key and key != f"Bearer {self.api_key}":
            return _error(401, "Incorrect API key provided")
        if body["model"] not in self.answers_to:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if not (self.has_chat if path.endswith("chat/completions") else self.has_text):
            return web.json_response({"detail": "Not Found"}, status=404)
        wrong = sorted(set(body) - KNOWN - {self.limit_field, self.seed_field, "generation_config"})
        wrong = wrong if self.prefill == "fields" else sorted({*wrong, *(CONTINUE & set(body))})
        if self.is_strict and [name for name in wrong if name not in CONTINUE or self.prefill != "fields"]:
            return web.json_response({"detail": f"Unexpected fields in the request: {wrong}"}, status=422)
        for name, expected in (("max_tokens", self.limit_field), ("seed", self.seed_field)):
            if name in body and name != expected:
                return _error(400, f"Unsupported parameter: '{name}'. Use '{expected}' instead.")
        if self.prefill == "refused" and "messages" in body and body["messages"][-1]["role"] == "assistant":
            return _error(400, "the last message must not be of role assistant")
        return await self.complete(body)

    async def complete(self, body: dict[str, Any]) -> web.Response:
        if self.seed == "global" and "seed" in body:
            self.global_rng.seed(body["seed"])
        await asyncio.sleep(self.service_s or 0.002)
        count = body.get("n", 1) if self.n != "ignored" else 1
        choices = [self.choice(body, 0 if self.n == "copies" else i) for i in range(count)]
        for i, choice in enumerate(choices):
            choice["index"] = i
        prompt = self.prompt_tokens(body)
        tokens = [choice.pop("tokens") for choice in choices]
        written = sum(tokens)
        self.usage += Usage(prompt, written, calls=1)
        answer: dict[str, Any] = {"id": "x", "object": "chat.completion", "model": "fake", "choices": choices}
        written = written if self.counts_all else tokens[0]
        if self.counts:
            answer["usage"] = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        return web.json_response(answer)

    def choice(self, body: dict[str, Any], i: int) -> dict[str, Any]:
        words = self.words(body, i)
        stops, finish, told = body.get("stop", []), "length" if len(words) == self.limit(body) else "stop", None
        text = " ".join(words[self.hidden_tokens :])
        cuts = [(text.index(stop), stop) for stop in stops if stop in text]
        if cuts and self.stop != "ignored":
            at, stop = min(cuts)
            text, finish = text[: at + len(stop) if self.stop == "kept" else at], "stop"
            told = stop if self.stop == "told" else None
            words = words[: self.hidden_tokens] + text.split()
        choice: dict[str, Any] = {"finish_reason": finish, "tokens": len(words), "stop_reason": told}
        if "messages" not in body:
            return choice | {"text": text} | self.logprobs(body, words)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.has_tools and body.get("tools"):
            function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"city": "Paris"}'}
            message |= {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
            choice["finish_reason"] = "tool_calls"
        return choice | {"message": message} | self.logprobs(body, words)

    def logprobs(self, body: dict[str, Any], words: list[str]) -> dict[str, Any]:
        if not body.get("logprobs") or not self.has_logprobs:
            return {"logprobs": None}
        if "messages" not in body:
            top = [{word: -0.5, "other": -1.5} for word in words]
            return {"logprobs": {"tokens": words, "token_logprobs": [-0.5] * len(words), "top_logprobs": top}}
        top = [{"token": "x", "logprob": -0.5}, {"token": "y", "logprob": -1.5}][: body.get("top_logprobs", 0)]
        return {"logprobs": {"content": [{"token": w, "logprob": -0.5, "top_logprobs": top} for w in words]}}

    def words(self, body: dict[str, Any], i: int) -> list[str]:
        needs = self.sampling == "generation_config"
        is_hot = '"do_sample": true' in body.get("generation_config", "") if needs else self.sampling != "never"
        rng = random.Random(str(body.get("messages", body.get("prompt"))))
        if is_hot and body["temperature"] > 0:
            own = random.Random(f"{body.get(self.seed_field)}/{i}")
            rng = {"own": own, "global": self.global_rng, "ignored": random.Random()}[self.seed]
        return rng.choices(WORDS, k=min(self.limit(body), 40))

    def limit(self, body: dict[str, Any]) -> int:
        return int(body[self.limit_field])

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        if "messages" not in body:
            return len(body["prompt"].split())
        messages = body["messages"]
        total = sum(len((m["content"] or "").replace("\n", " <br> ").split()) + 3 for m in messages) + 2
        is_open = self.prefill == "plain" or (self.prefill == "fields" and body.get("continue_final_message"))
        return total - 3 if messages[-1]["role"] == "assistant" and is_open else total


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


@contextlib.contextmanager
def serving(**knobs: Any) -> Iterator[FakeServer]:
    """The server in a thread of its own."""
    server, loop, started = FakeServer(**knobs), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", server.handle), web.post("/v1/completions", server.handle)])
        app.add_routes([web.get("/v1/models", server.models)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port := free_port()).start()
        server.url = f"http://127.0.0.1:{port}/v1"
        started.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(backend: OpenAIBackend, *requests: Generate, seed: int = 1) -> list[list[Completion]]:
    """All requests in flight together, in an event loop of their own."""

    async def run() -> list[list[Completion]]:
        seeds = iter(range(seed, seed + sum(request.n for request in requests)))
        own = [[next(seeds) for _ in range(request.n)] for request in requests]
        return await asyncio.gather(*(backend.agenerate(r, s) for r, s in zip(requests, own, strict=True)))

    return asyncio.run(run())


def draws(n: int = 8, prompt: Any = CHAT, **params: Any) -> Generate:
    return Generate(prompt, n=n, params=SamplingParams(**{"max_tokens": 8, **params}))


def texts(completions: Sequence[Completion]) -> list[str]:
    return [completion.text for completion in completions]
