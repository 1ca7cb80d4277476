"""The OpenAI-compatible backend: against a server with knobs for every trap, and against `transformers serve`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from posttrain_plugins.backends.open import open_backend
from posttrain_plugins.backends.openai.backend import OpenAIBackend
from posttrain_plugins.backends.protocol import AsyncBackend, check_request
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import Completion, Generate, Problem, SamplingParams, Usage

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
        if body["model"] != "fake":
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
        await web.TCPSite(runner, "127.0.0.1", port := _free_port()).start()
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


def _free_port() -> int:
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


# --- the probe -------------------------------------------------------------------------------------------------------

GOOD = {
    "n": True,
    "temperature": True,
    "seed": True,
    "prefill": True,
    "logprobs": True,
    "top_logprobs": True,
    "stop": True,
    "stop_reason": True,
    "tools": True,
    "values": False,
}


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, {}),
        ({"n": "ignored"}, {"n": False}),
        ({"n": "copies"}, {"n": False}),
        ({"sampling": "generation_config"}, {}),
        ({"sampling": "never"}, {"temperature": False}),
        ({"seed": "global"}, {"seed": False}),
        ({"seed": "ignored"}, {"seed": False}),
        ({"prefill": "plain"}, {}),
        ({"prefill": "closed"}, {"prefill": False}),
        ({"prefill": "refused"}, {"prefill": False}),
        ({"prefill": "closed", "is_strict": True}, {"prefill": False}),
        ({"prefill": "plain", "is_strict": True}, {}),
        ({"stop": "kept"}, {}),
        ({"stop": "silent"}, {"stop_reason": False}),
        ({"stop": "ignored"}, {}),
        ({"has_logprobs": False}, {"logprobs": False, "top_logprobs": False}),
        ({"has_tools": False}, {"tools": False}),
        ({"limit_field": "max_completion_tokens"}, {}),
        ({"seed_field": "random_seed"}, {}),
        ({"counts": False}, {"prefill": False}),
        ({"hidden_tokens": 20}, {}),
        ({"hidden_tokens": 1024}, {"stop_reason": False}),
    ],
)
def test_the_probe_finds_what_the_server_does(knobs: dict[str, Any], expected: dict[str, bool]) -> None:
    with serving(**knobs) as server:
        found = OpenAIBackend("fake", server.url).capabilities
    assert {name: getattr(found, name) for name in GOOD} == GOOD | expected


def test_the_probe_is_made_once_counted_apart_and_told() -> None:
    told: list[str] = []
    with serving(n="ignored", sampling="generation_config", seed="global", prefill="closed") as server:
        backend = OpenAIBackend("fake", server.url, on_note=told.append)
        assert backend.capabilities == backend.capabilities
        probing = len(server.bodies)
        assert backend.probe_usage == server.usage
        completions = ask(backend, draws(), draws())
        assert len(server.bodies) == probing + 16
    spent = sum((c.usage for of in completions for c in of), Usage())
    assert backend.probe_usage + spent == server.usage
    assert probing < 50
    lines = "\n".join(backend.describe())
    assert "n            no   1 of 4 came: each completion is a request of its own" in lines
    assert "temperature  yes" in lines
    assert "only with a generation_config: greedy without it" in lines
    assert "equal seeds hold only for one request at a time" in lines
    assert told == backend.notes
    assert [line.split(": ")[1] for line in told] == ["n", "prefill", "temperature", "seed"]


def test_requests_that_come_before_the_finding_share_one_probe() -> None:
    with serving() as server:
        first, second = (OpenAIBackend("fake", server.url) for _ in range(2))
        first.capabilities  # noqa: B018
        alone = len(server.bodies)
        server.bodies.clear()
        ask(second, *(draws() for _ in range(5)))
        assert len(server.bodies) == alone + 5


def test_without_a_probe_the_server_is_taken_at_its_word() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url, should_probe=False)
        ((*completions,),) = ask(backend, draws())
        assert len(server.bodies) == 1
        assert len(set(texts(completions))) == 8
        assert not backend.capabilities.prefill


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", ["many", "ignored", "copies"])
@pytest.mark.parametrize("sampling", ["temperature", "generation_config"])
@pytest.mark.parametrize("prompt", [CHAT, "Count: one"], ids=["chat", "text"])
def test_n_distinct_samples_come_back_and_usage_is_the_servers(n: str, sampling: str, prompt: Any) -> None:
    with serving(n=n, sampling=sampling) as server:
        backend = OpenAIBackend("fake", server.url)
        ask(backend, draws(1, prompt))
        before, server.bodies[:] = server.usage, []
        ((*completions,),) = ask(backend, draws(8, prompt))
        assert len(server.bodies) == (1 if n == "many" else 8)
    assert len(set(texts(completions))) == 8
    assert sum((c.usage for c in completions), before) == server.usage
    assert {c.usage.prompt_tokens for c in completions[1:]} == (
        {0} if n == "many" else {completions[0].usage.prompt_tokens}
    )


def test_equal_seeds_give_equal_completions_and_fit_every_server() -> None:
    with serving(n="ignored") as server:
        backend = OpenAIBackend("fake", server.url)
        first, second, other = (ask(backend, draws(), seed=seed)[0] for seed in (2**62, 2**62, 2**62 + 100))
    assert texts(first) == texts(second)
    assert texts(first) != texts(other)
    assert all(0 <= body.get("seed", 0) < 2**31 for body in server.bodies)


def test_many_more_than_a_server_takes_at_once_are_asked_in_parts() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url, should_probe=False)
        ((*completions,),) = ask(backend, draws(300))
        assert [body["n"] for body in server.bodies] == [128, 128, 44]
    assert len(completions) == 300
    assert sum((c.usage for c in completions), Usage()) == server.usage


def test_a_prefill_is_sent_as_the_server_wants_it() -> None:
    prefilled = draws(1, [*CHAT, {"role": "assistant", "content": "One"}])
    with serving(prefill="fields") as server:
        ask(OpenAIBackend("fake", server.url), prefilled)
        assert server.bodies[-1]["continue_final_message"] is True
        assert server.bodies[-1]["add_generation_prompt"] is False
    with serving(prefill="plain") as server:
        ask(OpenAIBackend("fake", server.url), prefilled)
        assert not CONTINUE & set(server.bodies[-1])
    with serving(prefill="closed") as server, pytest.raises(InputError, match="goes on from a begun answer"):
        check_request(prefilled, OpenAIBackend("fake", server.url), "beam_search")


@pytest.mark.parametrize(("stop", "told"), [("told", "w"), ("kept", "w"), ("silent", None), ("ignored", "w")])
def test_a_stop_string_is_cut_and_told_where_it_can_be(stop: str, told: str | None) -> None:
    with serving(stop=stop) as server:
        backend = OpenAIBackend("fake", server.url)
        ((completion,),) = ask(backend, draws(1, stop=("zzz", "w")))
        assert (completion.text, completion.finish_reason, completion.stop_reason) == ("", "stop", told)
        ((unstopped,),) = ask(backend, draws(1, stop=("zzz",)))
        assert (unstopped.finish_reason, unstopped.stop_reason) == ("length", None)


@pytest.mark.parametrize("prompt", [CHAT, "Count: one"], ids=["chat", "text"])
def test_logprobs_and_confidences(prompt: Any) -> None:
    with serving() as server:
        ((completion,),) = ask(OpenAIBackend("fake", server.url), draws(1, prompt, logprobs=True, top_logprobs=2))
    assert completion.logprobs == [-0.5] * 8
    assert completion.confidences == [1.0] * 8


def test_tool_calls_are_parsed_and_schemas_wrapped() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url)
        for tool in (TOOL, TOOL["function"]):
            ((completion,),) = ask(backend, Generate(CHAT, params=SamplingParams(max_tokens=8), tools=(tool,)))
            assert server.bodies[-1]["tools"] == [TOOL]
            assert completion.tool_calls == [{"name": "add", "arguments": {"city": "Paris"}}]
            assert (completion.finish_reason, completion.text) == ("tool_calls", "")


def test_reasoning_that_is_split_off_is_put_back() -> None:
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    payload = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": None}
    with serving(script=[(200, {}, json.dumps(payload))]) as server:
        ((completion,),) = ask(OpenAIBackend("fake", server.url, should_probe=False), draws(1))
    assert completion.text == "<think>\n2 and 2\n</think>\n\n4"


def test_extra_fields_are_sent_and_ours_left_out_on_demand() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url, should_probe=False, extra_body={"top_k": -1, "top_p": None})
        ask(backend, draws(1))
        assert server.bodies[-1]["top_k"] == -1
        assert "top_p" not in server.bodies[-1]


def test_concurrency_is_limited_and_nobody_waits_for_a_wave() -> None:
    with serving(n="ignored", service_s=0.02) as server:
        backend = OpenAIBackend("fake", server.url, concurrency=6)
        server.peak = 0
        ask(backend, *(draws(4) for _ in range(6)))
        assert server.peak == 6


def test_it_is_an_async_backend_whose_connections_close_with_the_loop() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url, should_probe=False, identity="weights")
        assert isinstance(backend, AsyncBackend)
        assert backend.identity == "weights"
        for _ in range(3):  # a new loop each; a connection left open is a ResourceWarning, an error here
            ask(backend, draws(1))
        assert backend._endpoint._held == {}

        async def close() -> None:
            await backend.agenerate(draws(1), [1])
            await backend.aclose()
            assert backend._endpoint._held == {}
            await backend.agenerate(draws(1), [1])

        asyncio.run(close())


# --- what goes wrong -------------------------------------------------------------------------------------------------

BUSY = (503, {}, "overloaded")


def impatient(server: FakeServer, monkeypatch: pytest.MonkeyPatch, **options: Any) -> OpenAIBackend:
    monkeypatch.setattr("posttrain_plugins.backends.openai.http.FIRST_PAUSE_S", 0.001)
    return OpenAIBackend("fake", server.url, should_probe=False, **options)


@pytest.mark.parametrize(
    "answer",
    [BUSY, (429, {}, "slow down"), (500, {}, ""), (200, {}, "<html>"), (200, {}, "[]"), (408, {}, "{}")],
    ids=["503", "429", "500", "no JSON", "no object", "408"],
)
def test_what_may_pass_is_tried_again(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(script=[answer] * 2) as server:
        ((*completions,),) = ask(impatient(server, monkeypatch), draws(2))
        assert len(server.bodies) == 3
    assert [c.error for c in completions] == [None, None]


@pytest.mark.parametrize("header", ["0.3", "date"])
def test_retry_after_is_honoured(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header = formatdate(time.time() + 2, usegmt=True) if header == "date" else header
    with serving(script=[(429, {"Retry-After": header}, "")]) as server:
        ask(impatient(server, monkeypatch), draws(1))
        assert server.times[1] - server.times[0] >= 0.29


def test_a_request_that_fails_for_good_is_failed_samples_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(script=[BUSY] * 3) as server:
        first, second = ask(impatient(server, monkeypatch, max_retries=2, concurrency=1), draws(3), draws(2))
        assert len(server.bodies) == 4
    assert [(c.text, c.finish_reason, c.error) for c in first] == [("", "error", "HTTP 503: overloaded")] * 3
    assert sum((c.usage for c in first), Usage()) == Usage()
    assert [c.error for c in second] == [None] * 2


def test_samples_that_the_server_keeps_back_are_failed_samples() -> None:
    with serving(n="ignored") as server:
        ((*completions,),) = ask(OpenAIBackend("fake", server.url, should_probe=False), draws(3))
    assert [c.error for c in completions] == [None] + ["the server sent 1 of 3 completions"] * 2


def test_a_refused_request_is_not_tried_again() -> None:
    with serving(script=[(400, {}, json.dumps({"error": {"message": "maximum context length is 8"}}))]) as server:
        ((completion,),) = ask(OpenAIBackend("fake", server.url, should_probe=False), draws(1))
        assert len(server.bodies) == 1
    assert (completion.finish_reason, completion.error) == ("error", "HTTP 400: maximum context length is 8")


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"choices": [{}, {}]}, "a choice is not as expected: KeyError: 'text'"),
        ({"choices": [{"text": None}, {"text": ""}]}, None),
        ({"choices": [{"message": {}}, {"message": {"content": None}}], "usage": "none"}, None),
        ({"choices": [None, 7]}, "a choice is not as expected"),
        ({"choices": [{"message": {"content": "a"}, "finish_reason": "content_filter"}] * 2}, "content_filter"),
        ({"choices": [{"message": {"tool_calls": ["f"]}}] * 2}, "a choice is not as expected: AttributeError"),
    ],
)
def test_a_strange_answer_is_a_failed_sample(payload: dict[str, Any], error: str | None) -> None:
    with serving(script=[(200, {}, json.dumps(payload))]) as server:
        ((*completions,),) = ask(OpenAIBackend("fake", server.url, should_probe=False), draws(2))
    assert len(completions) == 2
    for completion in completions:
        assert error in (completion.error or "") if error else completion.error is None


def test_a_server_that_does_not_answer_in_time_fails_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(service_s=1.0) as server:
        ((completion,),) = ask(impatient(server, monkeypatch, timeout_s=0.05, max_retries=1), draws(1))
        assert len(server.bodies) == 2
    assert completion.error == "no answer within 0.05 s"


def test_a_wrong_key_an_unknown_model_and_a_wrong_route_are_told() -> None:
    with serving(api_key="right", has_text=False) as server:
        with pytest.raises(InputError, match=r"refused the API key: 401 Incorrect API key") as refused:
            OpenAIBackend("fake", server.url, "wrong").describe()
        assert "wrong" not in str(refused.value)
        for should_probe in (True, False):
            with pytest.raises(InputError, match="`unknown` does not exist") as unknown:
                ask(OpenAIBackend("unknown", server.url, "right", should_probe=should_probe), draws(1))
            assert "models there: fake, other" in str(unknown.value)
        with pytest.raises(InputError, match=r"v1/completions answered 404: Not Found"):
            ask(OpenAIBackend("fake", server.url, "right"), draws(1, "text"))
        assert OpenAIBackend("fake", server.url, "right").capabilities.n


def test_an_endpoint_without_chat_is_described_by_its_text_route() -> None:
    with serving(has_chat=False) as server:
        backend = OpenAIBackend("fake", server.url)
        assert backend.capabilities.prefill
        assert not backend.capabilities.tools


def test_keys_and_urls_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(api_key="right") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        ((completion,),) = ask(OpenAIBackend("fake", should_probe=False), draws(1))
    assert completion.error is None


def test_a_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "near.example")
        ((completion,),) = ask(OpenAIBackend("fake", "http://far.example/v1", should_probe=False), draws(1))
        assert completion.error is None
        assert OpenAIBackend("fake", "http://near.example/v1")._endpoint._proxy is None


def test_a_used_up_quota_ends_the_run_at_once() -> None:
    quota = json.dumps({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
    with serving(script=[(429, {}, quota)] * 9) as server:
        with pytest.raises(InputError, match="exceeded your current quota"):
            ask(OpenAIBackend("fake", server.url, should_probe=False), draws(1))
        assert len(server.bodies) == 1


def test_a_rate_limit_is_not_taken_for_what_the_server_cannot_do() -> None:
    plain = {"choices": [{"message": {"content": "7"}, "finish_reason": "stop"}]}
    with serving(script=[(200, {}, json.dumps(plain)), (429, {}, "slow down")]) as server:
        with pytest.raises(InputError, match=r"cannot be tried for what it can do: 429 slow down") as caught:
            ask(OpenAIBackend("fake", server.url, max_retries=0), draws(1))
        assert "should_probe=False" in str(caught.value.hint)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{_free_port()}/v1"
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(f"posttrain_plugins.backends.openai.http.{name}", 60.0)
    began = time.monotonic()
    with pytest.raises(InputError, match=f"cannot reach the endpoint {url}"):
        ask(OpenAIBackend("fake", url), draws(1))
    assert time.monotonic() - began < 30.0, "it paused and asked again"
    monkeypatch.setattr("posttrain_plugins.backends.openai.http.FIRST_PAUSE_S", 0.001)
    with pytest.raises(InputError, match=f"the endpoint {url} is gone"):
        ask(OpenAIBackend("fake", url, should_probe=False, max_retries=2), draws(1))


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def transformers_serve(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """`transformers serve` on a random tiny model: its URL, and the model's folder, which is the model's name.

    A Llama, because for a Qwen3 the server reads answers with Qwen's own chat format, whatever the template.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    words = tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=256, **sizes, **ids))
    folder, url = tmp_path / "tiny", f"http://127.0.0.1:{(port := _free_port())}"
    model.save_pretrained(str(folder))
    words.save_pretrained(str(folder))
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
        try:
            _wait_until_ready(server, f"{url}/health", tmp_path / "server.log")
            yield f"{url}/v1", folder
        finally:
            server.terminate()
            server.wait(30)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_transformers_serve(transformers_serve: tuple[str, Path]) -> None:
    """It ignores `n`, decodes greedily unless a `generation_config` says otherwise, and keeps one global seed."""
    url, folder = transformers_serve
    backend = OpenAIBackend(str(folder), url)
    found, lines = backend.capabilities, "\n".join(backend.describe())
    assert (found.n, found.temperature, found.seed, found.prefill, found.logprobs) == (False, True, False, False, False)
    assert (found.stop, found.stop_reason) == (True, True)
    assert "1 of 4 came" in lines
    assert "only with a generation_config: greedy without it" in lines
    assert "equal seeds hold only for one request at a time" in lines

    ((*completions,),) = ask(backend, draws(8, max_tokens=24))
    assert len(set(texts(completions))) == 8
    tokens = {name: _true_tokens(url, str(folder), seed) for seed, name in ((1, "first"), (1, "again"), (2, "other"))}
    assert tokens["first"] == tokens["again"]  # one after another, its seed works
    assert tokens["first"] != tokens["other"]
    ((alone,),) = ask(backend, draws(1, max_tokens=24), seed=1)
    assert (alone.text, alone.usage.prompt_tokens, alone.usage.completion_tokens) == tokens["first"]

    ((stopped, *_),) = ask(backend, draws(1, max_tokens=24, stop=(alone.text[3],)), seed=1)
    assert stopped.text == alone.text[: alone.text.index(alone.text[3])]
    assert stopped.stop_reason == alone.text[3]
    ((*plain,),) = ask(backend, draws(4, "3+4=", max_tokens=24))
    assert len(set(texts(plain))) == 4


def _true_tokens(url: str, model: str, seed: int) -> tuple[str, int, int]:
    """What the server says to a request that was written by hand: text, prompt tokens, completion tokens."""
    config = json.dumps({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0})
    body = {"model": model, "messages": CHAT, "max_tokens": 24, "seed": seed, "generation_config": config}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = json.load(answer)
    usage = said["usage"]
    return said["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"]


# --- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_runs_and_counts_the_same_work(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "endpoint.py"
    options = ["--problems", "8", "--rounds", "1", "--client-requests", "8", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "endpoint.json").read_text(encoding="utf-8"))["results"]
    (taken,) = results["rounds"]
    assert taken.keys() == {"raw", "bare_aiohttp", "bare_aiohttp_n", "ours", "ours_single", "ours_slot_per_completion"}
    assert {name: side["completions"] for name, side in taken.items() if "ours" in name} == dict.fromkeys(
        ("ours", "ours_single", "ours_slot_per_completion"), 64
    )
    assert (taken["ours"]["requests"], taken["ours_single"]["requests"]) == (8, 64)


@pytest.mark.parametrize("has_logprobs", [True, False])
@pytest.mark.parametrize("prompt", [CHAT, "Count to ten."])
def test_tokens_that_a_server_does_not_tell_are_counted(has_logprobs: bool, prompt: Any) -> None:
    """llama.cpp's server tells those of the first completion of a request alone."""
    with serving(counts_all=False, has_logprobs=has_logprobs) as server:
        backend = OpenAIBackend("fake", server.url)
        usage = {str(finding).split()[0]: str(finding) for finding in backend._main().findings}["usage"]
        assert " no " in usage
        assert any("usage" in note for note in backend.notes)
        ask(backend, draws(1, prompt))  # each route is probed at its first request
        before = server.usage
        (result,) = solve(SelfConsistency(n=5), [Problem(prompt, SamplingParams(max_tokens=12))], backend=backend)
        spent = result.usage["policy"]
        assert spent.completion_tokens == server.usage.completion_tokens - before.completion_tokens == 60
        assert spent.calls == (1 if has_logprobs else 5)


def test_a_server_that_tells_all_is_taken_at_its_word() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url)
        assert backend._main().counts_all
        solve(SelfConsistency(n=3), [Problem(CHAT, SamplingParams(max_tokens=4))], backend=backend)
        assert "logprobs" not in server.bodies[-1]
    with serving(counts=False) as server:  # one that counts nothing is none that counts wrongly
        assert OpenAIBackend("fake", server.url)._main().counts_all


def test_a_server_with_one_model_needs_no_name() -> None:
    with serving(models_there=("fake",)) as server:
        backend: Any = open_backend(server.url)
        assert backend.model == backend.identity == "fake"
    with serving() as server, pytest.raises(InputError, match="it lists fake, other") as told:
        open_backend(server.url)
    assert f"{server.url}#MODEL" in str(told.value.hint)
    with serving(models_there=()) as server, pytest.raises(InputError, match="it lists none"):
        open_backend(server.url)
