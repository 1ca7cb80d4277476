"""The server: OpenAI's protocol by the official client, waves over all clients, refusals, and a graceful end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.errors import InputError, Interrupted
from posttrain_plugins.serve import models as serving_models
from posttrain_plugins.serve import server
from posttrain_plugins.serve.app import RequestGate, create_app
from posttrain_plugins.serve.model_thread import ModelThread
from posttrain_plugins.serve.models import Served, open_models, parse_models
from posttrain_plugins.serve.protocol import RequestLimits
from posttrain_plugins.serve.queued import QueuedBackend, queued
from posttrain_plugins.serve.service import Service
from posttrain_plugins.serve.strategies import Strategies
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Budget, Completion, Generate, ResolvedReward, Usage

USER = [{"role": "user", "content": "2+3=?"}]
PATIENCE_S = 60  # after which a test gives up: what it waits for comes, however slow the machine


class Scripted:
    """A backend that says what its seeds tell it to: `answer is 0` ... `answer is 9`; it counts its calls."""

    capabilities = Capabilities(tools=True)

    def __init__(self, identity: str = "m") -> None:
        self.identity = identity
        self.waves: list[list[Generate]] = []
        self.gate: threading.Event | None = None
        self.delay_s = 0.0

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.waves.append(list(batch))
        if self.gate is not None:
            assert self.gate.wait(PATIENCE_S)
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            if "boom" in to_text(request.prompt):
                raise RuntimeError("boom")
            for j, seed in enumerate(of_request):
                time.sleep(self.delay_s)
                yield i, j, self.completion(request, seed, is_first=j == 0)

    def completion(self, request: Generate, seed: int, is_first: bool) -> Completion:
        usage = Usage(5 if is_first else 0, 3)
        if request.tools:
            calls = [{"name": "add", "arguments": {"a": 2}}]
            return Completion("", "tool_calls", usage, tool_calls=calls)
        if "fail" in to_text(request.prompt):
            return Completion("", "error", usage, error="out of luck")
        digit = 7 if request.params.temperature == 0 else seed % 10
        return Completion(f"answer is {digit}", "stop", usage)


@dataclass
class Host:
    """A server in this process."""

    backends: Mapping[str, Any]
    request_gate: RequestGate
    http: TestClient

    @property
    def backend(self) -> Scripted:
        found = next(iter(self.backends.values()))
        assert isinstance(found, Scripted)
        return found

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            api_key=self.request_gate.api_key or "none",
            base_url="http://testserver/v1",
            http_client=self.http,
            max_retries=0,
        )

    def chat(self, model: str = "m", **fields: Any) -> Any:
        return self.client.chat.completions.create(model=model, messages=USER, **fields)  # type: ignore[call-overload]

    def post(self, path: str = "/v1/chat/completions", **fields: Any) -> Any:
        return self.http.post(path, json={"model": "m", "messages": USER, **fields})


@pytest.fixture
def host() -> Iterator[Callable[..., Host]]:
    """Opens servers with scripted models, one named `m` unless told, and closes them."""
    opened: list[ModelThread] = []

    def open_host(
        backends: Mapping[str, Any] | None = None,
        *,
        scorers: Mapping[str, Any] | None = None,
        named: Mapping[str, str] | None = None,
        limits: RequestLimits | None = None,
        **of_gate: Any,
    ) -> Host:
        worker = ModelThread()
        opened.append(worker)
        found = backends or {"m": Scripted()}
        rewards = {name: ResolvedReward(name, func) for name, func in (scorers or {}).items()}
        strategies = Strategies(list(found), worker, rewards, named or {})
        served = {name: Served(name, name, backend) for name, backend in found.items()}
        request_gate = RequestGate(Service(served, strategies, worker, limits or RequestLimits()), **of_gate)
        return Host(found, request_gate, TestClient(create_app(request_gate), raise_server_exceptions=False))

    yield open_host
    for worker in opened:
        worker.close(PATIENCE_S)


def brevity(completions: list[Any], **columns: Any) -> list[float]:
    return [-float(to_text(completion)[-1]) for completion in completions]  # the smallest digit is best


# --- answers ---------------------------------------------------------------------------------------------------------


def test_chat_gives_n_choices_and_the_usage(host: Callable[..., Host]) -> None:
    here = host()
    reply = here.chat(n=3, temperature=1.0, max_tokens=9, stop=[";"], user="someone", metadata={"a": "b"})
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert all(choice.message.content.startswith("answer is ") for choice in reply.choices)
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (5, 9, 14)
    assert reply.usage.roles["policy"]["calls"] == 1
    assert reply.object == "chat.completion"
    assert reply.model == "m"
    (request,) = here.backend.waves[0]
    assert (request.n, request.params.max_tokens, request.params.stop) == (3, 9, (";",))


def test_a_seed_fixes_the_answer_and_without_one_answers_differ(host: Callable[..., Host]) -> None:
    here = host()
    texts = [[c.message.content for c in here.chat(n=8, seed=s).choices] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    free = [[c.message.content for c in here.chat(n=8).choices] for _ in range(2)]
    assert free[0] != free[1]


def test_a_strategy_in_the_model_name(host: Callable[..., Host]) -> None:
    here = host(scorers={"short": brevity})
    drawn = [c.message.content for c in here.chat(n=8, seed=3).choices]
    best = here.chat("m@best_of_n(n=8, scorer=short)", seed=3, extra_body={"trace": True})
    assert best.choices[0].message.content == min(drawn, key=lambda text: text[-1])  # of the same eight
    assert len(best.choices) == 1
    assert best.posttrain["answer"] == best.choices[0].message.content[-1]
    assert [event["kind"] for event in best.posttrain["trace"]] == ["generate", "score"]
    assert set(best.usage.roles) == {"policy", "short"}
    voted = here.chat("m@self_consistency(n=8)", seed=3)
    digits = [text[-1] for text in drawn]
    assert voted.choices[0].message.content[-1] == max(digits, key=digits.count)
    assert "trace" not in voted.posttrain


def test_greedy_is_greedy_whatever_the_client_sends(host: Callable[..., Host]) -> None:
    assert host().chat("m@greedy", temperature=1.0).choices[0].message.content == "answer is 7"


def test_streams_are_the_finished_text_in_pieces(host: Callable[..., Host]) -> None:
    here = host()
    chunks = list(here.chat("m@self_consistency(n=4)", seed=1, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == here.chat("m@self_consistency(n=4)", seed=1).choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 17
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(here.chat(n=2, seed=1, stream=True))
    assert {chunk.choices[0].index for chunk in without} == {0, 1}
    assert all(chunk.usage is None for chunk in without)


def test_a_stream_that_waits_sends_comments_and_ends_with_done(host: Callable[..., Host]) -> None:
    here = host(keep_alive_s=0.0)
    here.backend.delay_s = 0.7
    text = here.post(stream=True).text
    lines = [line for line in text.split("\n") if line]
    assert lines[0] == ": the answer is not finished"
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line[6:]) for line in lines if line.startswith("data: {"))


def test_text_completions_of_several_prompts(host: Callable[..., Host]) -> None:
    here = host()
    reply = here.client.completions.create(model="m", prompt=["a", "b"], n=2, seed=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.object == "text_completion"
    (wave,) = here.backend.waves
    assert [(request.prompt, request.n) for request in wave] == [("a", 2), ("b", 2)]
    chunks = list(here.client.completions.create(model="m@greedy", prompt="a", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "answer is 7"


def test_a_last_assistant_message_is_gone_on_from(host: Callable[..., Host]) -> None:
    here = host()
    here.client.chat.completions.create(
        model="m",
        messages=[*USER, {"role": "assistant", "content": "It is"}],  # type: ignore[list-item]
    )
    assert here.backend.waves[0][0].prompt[-1] == {"role": "assistant", "content": "It is"}


def test_native_tools_there_and_back(host: Callable[..., Host]) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    here = host()
    choice = here.chat(tools=[tool]).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 2})
    history = [
        *USER,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "5"},
    ]
    assert here.post(messages=history).status_code == 200
    seen = here.backend.waves[-1][0].prompt
    assert seen[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert seen[2] == {"role": "tool", "content": "5", "tool_call_id": call.id}
    streamed = [c.choices[0].delta.tool_calls for c in here.chat(tools=[tool], stream=True) if c.choices]
    assert [calls[0].function.name for calls in streamed if calls] == ["add"]
    assert here.post(tools=[tool], tool_choice="none").json()["choices"][0]["message"]["content"].startswith("answer")


def test_content_blocks_and_developer_messages_are_read(host: Callable[..., Host]) -> None:
    here = host()
    blocks = [{"type": "text", "text": "2+3"}, {"type": "text", "text": "=?"}]
    here.post(messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": blocks}])
    assert here.backend.waves[0][0].prompt == [{"role": "system", "content": "be brief"}, *USER]


def test_models_are_listed_with_the_servers_own_strategies(host: Callable[..., Host]) -> None:
    here = host({"a": Scripted("a"), "b": Scripted("b")}, named={"vote": "self_consistency(n=3)"})
    rows = here.client.models.list().data
    assert [row.id for row in rows] == ["a", "a@vote", "b", "b@vote"]
    assert "self_consistency" in rows[0].strategies  # type: ignore[attr-defined]
    assert here.client.models.retrieve("a@vote").id == "a@vote"
    assert here.chat("b@vote").usage.completion_tokens == 9
    assert [len(backend.waves) for backend in here.backends.values()] == [0, 1]
    with pytest.raises(openai.NotFoundError, match="did you mean"):
        here.client.models.retrieve("a@vot")


def test_other_served_models_are_roles(host: Callable[..., Host]) -> None:
    here = host({"a": Scripted("a"), "b": Scripted("b")})
    reply = here.chat("a@mixture_of_agents(proposers=['a', 'b'], aggregator=b)")
    assert {"a", "b"} <= set(reply.usage.roles)
    assert all(backend.waves for backend in here.backends.values())


def test_a_budget_ends_a_strategy_with_its_best_so_far(host: Callable[..., Host]) -> None:
    here = host()
    reply = here.chat("m@adaptive_consistency(n=64, tau=0.999999)", extra_body={"budget": {"completions": 2}})
    assert reply.posttrain["stopped_by"] == "completions"
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content.startswith("answer is")
    capped = host(limits=RequestLimits(budget=Budget(completions=3)))
    assert (
        capped.chat("m@self_consistency(n=50)", extra_body={"budget": {"completions": 9}}).usage.completion_tokens == 9
    )
    assert len(capped.chat(n=5).choices) == 3


# --- refusals --------------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": ""}, "model", "expected a name"),
    ({"model": 3}, "model", "expected a name"),
    ({"messages": None}, "messages", "expected a list of messages"),
    ({"messages": []}, "messages", "at least one"),
    ({"messages": "hello"}, "messages", "expected a list"),
    ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0]", "role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0]", "expected text"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "expected text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0]", "only text"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0]", "name of a function"),
    ({"n": 0}, "n", "from 1 to 64"),
    ({"n": 65}, "n", "from 1 to 64"),
    ({"n": 2.0}, "n", "whole number"),
    ({"n": True}, "n", "whole number"),
    ({"temperature": -1}, "temperature", "from 0 to 2"),
    ({"temperature": "hot"}, "temperature", "from 0 to 2"),
    ({"temperature": 10**400}, "temperature", "from 0 to 2"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"max_tokens": 5000}, "max_tokens", "from 1 to 4096"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "give one of them"),
    ({"stop": [""]}, "stop", "none of them empty"),
    ({"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"seed": "x"}, "seed", "whole number"),
    ({"seed": 2**70}, "seed", "whole number"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": [1]}, "stream_options", "include_usage"),
    ({"logprobs": 1}, "logprobs", "true or false"),
    ({"top_logprobs": 5}, "top_logprobs", "not supported"),
    ({"tools": [{"name": "x"}]}, "tools[0]", "function"),
    ({"tool_choice": "required"}, "tool_choice", "not supported"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
    ({"budget": {"token": 5}}, "budget", "tokens, completions, calls, seconds"),
    ({"budget": {"tokens": 0}}, "budget", "above 0"),
    ({"budget": {"tokens": 1.5}}, "budget", "above 0"),
    ({"model": "m@"}, "model", "unknown strategy"),
    ({"model": "m@self_consistancy(n=2)"}, "model", "did you mean 'self_consistency'?"),
    ({"model": "m@self_consistency(n=two)"}, "model", "expected int"),
    ({"model": "m@self_consistency(m=2)"}, "model", "unknown key 'm'"),
    ({"model": "m@self_consistency(n=2"}, "model", "NAME(key=value, ...)"),
    ({"model": "m@best_of_n(n=2, scorer=nobody)"}, "model", "no scorer 'nobody'"),
    ({"model": "m@best_of_n(n=2, scorer='../../etc:passwd')"}, "model", "no scorer"),
    ({"model": "m@best_of_n(n=2, scorer='gone:rm')"}, "model", "no scorer 'gone:rm'"),
    ({"model": "m@best_of_n(n=2, scorer='os:system')"}, "model", "no scorer 'os:system'"),
    ({"model": "m@best_of_n(n=2, scorer={'a': 1})"}, "model", "no scorer"),
    ({"model": "m@best_of_n(n=2, scorer=[[1]])"}, "model", "no scorer"),
    ({"model": "m@episodic_memory(memory_file='/tmp/x')"}, "model", "may not give 'memory_file'"),
    ({"model": "m@self_consistency(n=" + "-" * 900 + "1)"}, "model", "model: "),
    ({"model": "m@self_consistency(n=" + "1" * 2000 + ")"}, "model", "at most 1000"),
    ({"model": "m@./evil.py:Evil"}, "model", "unknown strategy"),
    ({"model": "m@os:system"}, "model", "unknown strategy"),
    ({"model": "m@react(tools=['os:system'])"}, "model", "names an object"),
    ({"model": "m@mixture_of_agents(proposers=['gone', 'm'])"}, "model", "no model 'gone' is served"),
    ({"model": "m@self_consistency(n=2)", "n": 2}, "n", "one answer"),
    ({"model": "m@self_consistency(n=2)", "logprobs": True}, "logprobs", "together with a strategy"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), BAD, ids=[json.dumps(row[0])[:60] for row in BAD])
def test_bad_input_is_a_400_that_names_the_field(
    host: Callable[..., Host], fields: dict[str, Any], param: str, message: str
) -> None:
    here = host()
    reply = here.post(**fields)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]
    assert here.backend.waves == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b'"x"', b"\xff", b'{"temperature": NaN}', b"[" * 100_000, b'{"n": 1' + b"0" * 5000 + b"}"],
)
def test_a_body_that_is_no_json_object_is_a_400(host: Callable[..., Host], body: bytes) -> None:
    reply = host().http.post("/v1/chat/completions", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": None}, "prompt"), ({}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"), ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "suffix": "y"}, "suffix"), ({"prompt": "x", "logprobs": 3}, "logprobs"),
        ({"prompt": "x", "messages": []}, "messages"),
    ],
)  # fmt: skip
def test_bad_text_completions(host: Callable[..., Host], fields: dict[str, Any], param: str) -> None:
    reply = host().http.post("/v1/completions", json={"model": "m", **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_fields_that_change_nothing_are_accepted(host: Callable[..., Host]) -> None:
    neutral = {
        "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"},
        "tool_choice": "auto", "top_logprobs": 0, "functions": None, "store": True, "parallel_tool_calls": True,
        "user": "u", "stop": None, "logprobs": False, "seed": None, "n": None, "max_tokens": None,
        "service_tier": "auto", "stream_options": None,
    }  # fmt: skip
    assert host().post(**neutral).status_code == 200


def test_unknown_models_and_routes(host: Callable[..., Host]) -> None:
    here = host({"small": Scripted(), "large": Scripted()})
    with pytest.raises(openai.NotFoundError) as unknown:
        here.chat("smal")
    assert unknown.value.body["code"] == "model_not_found"  # type: ignore[index]
    assert "did you mean 'small'?" in unknown.value.message
    with pytest.raises(openai.NotFoundError, match="known: small, large"):
        here.chat("gpt-4@self_consistency(n=2)")
    for reply in (here.http.get("/v1/embeddings"), here.http.get("/v1/chat/completions")):
        assert reply.status_code in (404, 405)
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_scorers_that_need_the_reference_answer_are_refused(host: Callable[..., Host]) -> None:
    def exact(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
        return [0.0 for _ in completions]

    with pytest.raises(InputError, match=r"needs the columns solution"):
        host(scorers={"exact": exact})


def test_what_a_client_may_not_name_the_server_may(host: Callable[..., Host], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CHATTY)
    here = host(named={"mine": f"{file}:Chatty(rounds=2)"})
    assert len(here.chat("m@mine").posttrain["answer"]) == 1
    assert len(here.backend.waves) == 2
    with pytest.raises(InputError, match="self_consistency"):
        host(named={"typo": "self_consistancy"})


def test_the_key_is_asked_for(host: Callable[..., Host]) -> None:
    here = host(api_key="secret")
    assert here.chat().choices
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret"},
        {"Authorization": "Basic secret"},
    ):
        for reply in (
            here.http.post("/v1/chat/completions", json={}, headers=headers),
            here.http.get("/v1/models", headers=headers),
        ):
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
    assert here.http.get("/health").status_code == 200


def test_large_requests_are_refused_whether_they_say_so_or_not(host: Callable[..., Host]) -> None:
    here = host(limits=RequestLimits(max_body_bytes=1000))
    large = [{"role": "user", "content": "x" * 2000}]
    assert here.post(messages=large).status_code == 413
    pieces = (b"x" * 100 for _ in range(50))
    reply = here.http.post("/v1/chat/completions", content=pieces)  # chunked: no length is told
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"
    assert here.post().status_code == 200


def test_what_fails_inside_is_a_500_in_the_same_shape(host: Callable[..., Host], tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def broken(problem):\n    raise ValueError('no good')\n    yield\n")

    def angry(completions: list[Any], **columns: Any) -> list[float]:
        raise OSError("out of paper")

    here = host(named={"broken": f"{file}:broken"}, scorers={"angry": angry})
    for model, message in (("m@broken", "no good"), ("m@best_of_n(n=2, scorer=angry)", "out of paper")):
        with pytest.raises(openai.InternalServerError, match=message) as failed:
            here.chat(model)
        assert failed.value.body["type"] == "server_error"  # type: ignore[index]
    failing = [{"role": "user", "content": "fail"}]
    for model in ("m", "m@self_consistency(n=3)"):
        reply = here.post(model=model, messages=failing)
        assert (reply.status_code, reply.json()["error"]["message"]) == (500, "the model failed: out of luck")
    events = here.post(model="m", messages=failing, stream=True).text
    assert json.loads(events.removeprefix("data: "))["error"]["type"] == "server_error"


# --- waves -----------------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for {PATIENCE_S} s"
        time.sleep(0.005)


def waiting(here: Host) -> int:
    return len(here.request_gate.service.model_thread._jobs)


def test_requests_that_wait_together_are_drawn_in_one_wave(host: Callable[..., Host]) -> None:
    """Of eight clients the first is drawn alone; the others come meanwhile and share the next wave."""
    here = host()
    here.backend.gate = threading.Event()
    kinds = ["m", "m@self_consistency(n=3)", "m@greedy", "m@best_of_n(n=2, scorer=short)"]
    here.request_gate.service.strategies.scorers["short"] = ResolvedReward("short", brevity)
    with ThreadPoolExecutor(8) as clients:
        first = clients.submit(here.chat)
        wait_for(lambda: len(here.backend.waves) == 1)
        others = [clients.submit(here.chat, kinds[i % 4]) for i in range(7)]
        wait_for(lambda: waiting(here) == 7)
        here.backend.gate.set()
        replies = [future.result(PATIENCE_S) for future in (first, *others)]
    assert [len(wave) for wave in here.backend.waves] == [1, 7]
    assert sorted(request.n for request in here.backend.waves[1]) == [1, 1, 1, 1, 2, 3, 3]
    assert all(reply.choices[0].message.content for reply in replies)
    assert here.request_gate.service.model_thread.waves == 2


def test_a_long_search_does_not_hold_up_a_short_question(host: Callable[..., Host], tmp_path: Path) -> None:
    """The search goes on until the questions are answered, and at least one of them shares a wave with it."""
    (tmp_path / "endless.py").write_text(ENDLESS.replace("END", repr(str(tmp_path / "end"))))
    here = host(named={"long": f"{tmp_path}/endless.py:endless"})

    def is_shared() -> bool:
        here.chat()
        return max(map(len, here.backend.waves)) == 2

    with ThreadPoolExecutor(1) as clients:
        long = clients.submit(here.chat, "m@long")
        wait_for(lambda: len(here.backend.waves) > 2)
        wait_for(is_shared)
        assert not long.done()
        (tmp_path / "end").touch()
        long.result(PATIENCE_S)
    assert max(map(len, here.backend.waves)) == 2


ENDLESS = """
from pathlib import Path
from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.types import Generate

def endless(problem):
    while True:
        completions = yield Generate(problem.prompt, params=problem.params)
        if Path(END).exists():
            return choose(candidates(completions), 0)
"""
CHATTY = """
from dataclasses import dataclass
from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.types import Generate

@dataclass
class Chatty:
    rounds: int = 3
    def __call__(self, problem):
        for _ in range(self.rounds):
            completions = yield Generate(problem.prompt, params=problem.params)
        return choose(candidates(completions), 0)
"""


def test_a_request_that_cannot_be_answered_fails_alone(host: Callable[..., Host]) -> None:
    here = host()
    here.backend.gate = threading.Event()
    bad = [{"role": "user", "content": "boom"}]
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(here.post)
        wait_for(lambda: len(here.backend.waves) == 1)
        mixed = [clients.submit(here.post, messages=bad if i == 1 else USER) for i in range(3)]
        wait_for(lambda: waiting(here) == 3)
        here.backend.gate.set()
        codes = [future.result(PATIENCE_S).status_code for future in (first, *mixed)]
    assert codes == [200, 200, 500, 200]


def test_clients_that_wait_for_a_scorer_share_a_call() -> None:
    worker, calls = ModelThread(), []

    def counted(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return [float(to_text(c)) for c in completions]

    reward = queued(worker, ResolvedReward("r", counted))
    gate = threading.Event()
    with ThreadPoolExecutor(5) as clients:
        clients.submit(worker.call, gate.wait)
        wait_for(lambda: not worker._jobs)
        asked = [
            clients.submit(reward.func, prompts=["p"] * n, completions=[str(n)] * n, extra=["e"] * n) for n in (1, 2, 3)
        ]
        chat = clients.submit(
            reward.func, prompts=[USER], completions=[[{"role": "assistant", "content": "9"}]], extra=[1]
        )
        wait_for(lambda: len(worker._jobs) == 4)
        gate.set()
        assert [future.result(PATIENCE_S) for future in (*asked, chat)] == [[1.0], [2.0] * 2, [3.0] * 3, [9.0]]
    assert sorted(calls) == [1, 6]  # the conversational one is a call of its own
    worker.close(PATIENCE_S)


def test_a_scorer_that_fails_for_one_fails_for_that_one_alone() -> None:
    worker = ModelThread()

    def picky(completions: list[str], **columns: Any) -> list[float]:
        return [1.0 / len(completion) for completion in completions]

    reward = queued(worker, ResolvedReward("r", picky))
    gate = threading.Event()
    with ThreadPoolExecutor(3) as clients:
        clients.submit(worker.call, gate.wait)
        wait_for(lambda: not worker._jobs)
        good, bad = (clients.submit(reward.func, prompts=["p"], completions=[text]) for text in ("ab", ""))
        wait_for(lambda: len(worker._jobs) == 2)
        gate.set()
        assert good.result(PATIENCE_S) == [0.5]
        with pytest.raises(ZeroDivisionError):
            bad.result(PATIENCE_S)
    worker.close(PATIENCE_S)


@dataclass
class Counting:
    """A judge that counts what it has spent."""

    spent: Usage = field(default_factory=Usage)

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        self.spent += Usage(10 * len(completions), calls=1)
        return [1.0 for _ in completions]


def test_each_client_pays_for_its_own_judge(host: Callable[..., Host]) -> None:
    here = host(scorers={"judge": Counting()})
    for n in (2, 3):
        reply = here.chat(f"m@best_of_n(n={n}, scorer=judge)", seed=n)
        distinct = {
            c["text"] for c in here.chat(n=n, seed=n, extra_body={"trace": True}).posttrain["trace"][0]["completions"]
        }
        assert reply.usage.roles["judge"]["prompt_tokens"] == 10 * len(distinct)


def test_a_client_that_has_gone_is_not_waited_for() -> None:
    worker, backend = ModelThread(), Scripted()
    backend.gate = threading.Event()
    gone = threading.Event()
    mine = QueuedBackend(worker, backend, gone.is_set)
    with ThreadPoolExecutor(2) as clients:
        drawn = clients.submit(lambda: list(mine.generate([Generate("a", n=1000)], [range(1000)])))
        wait_for(lambda: len(backend.waves) == 1)
        gone.set()
        with pytest.raises(Interrupted):
            drawn.result(PATIENCE_S)
        backend.gate.set()
        stays = QueuedBackend(worker, backend, lambda: False)
        assert len(list(stays.generate([Generate("b")], [[1]]))) == 1
    assert worker.completions < 10  # of the thousand, one or two
    worker.close(PATIENCE_S)


def test_while_the_server_ends_nobody_comes_in(host: Callable[..., Host]) -> None:
    here = host()
    here.backend.gate = threading.Event()
    with ThreadPoolExecutor(2) as clients:
        inside = clients.submit(here.post)
        wait_for(lambda: len(here.backend.waves) == 1)
        here.request_gate.is_closing = True
        assert here.post().status_code == 503
        assert here.http.get("/health").status_code == 503
        here.request_gate.cancel_all()
        late = inside.result(PATIENCE_S)
        here.backend.gate.set()
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "stopped"
    assert here.request_gate.in_flight == set()


# --- models ----------------------------------------------------------------------------------------------------------


def test_names_of_models(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "model"
    folder.mkdir(parents=True)
    found = parse_models(["run:sft", "a=org/Big", str(folder), "http://localhost:1/v1#far"])
    assert found == {"run:sft": "run:sft", "a": "org/Big", "mine": str(folder), "far": "http://localhost:1/v1#far"}
    with pytest.raises(InputError, match="two models are named 'a'"):
        parse_models(["a=x", "a=y"])
    with pytest.raises(InputError, match=r"no such folder: \./gone"):
        parse_models(["a=./gone"])
    for bad in ("a b=x", "=x", "a=", "a@b=x"):
        with pytest.raises(InputError, match="gives a model no name"):
            parse_models([bad])


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRA adapters of the tiny model that change what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(str(tiny_model))
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        folders.append(tmp_path_factory.mktemp("adapters") / f"lora{seed}")
        model.save_pretrained(str(folders[-1]))
        AutoTokenizer.from_pretrained(str(tiny_model)).save_pretrained(str(folders[-1]))
    return folders


def test_adapters_share_their_base_and_say_what_they_say_alone(
    tiny_model: Path, adapters: list[Path], tmp_path: Path
) -> None:
    from posttrain_plugins import api

    paths = {"base": str(tiny_model), "one": str(adapters[0]), "two": str(adapters[1])}
    shared = open_models(paths, tmp_path, {})
    assert len({id(served.backend.model) for served in shared.values()}) == 1  # type: ignore[union-attr]
    assert [served.base for served in shared.values()] == [None, str(tiny_model), str(tiny_model)]
    request = Generate([{"role": "user", "content": "3|7>2"}], params=replace(Generate("").params, max_tokens=12))
    said = {}
    for name in ("two", "base", "one", "base", "two"):  # in any order, again and again
        text = next(iter(shared[name].backend.generate([request], [[5]])))[2].text  # type: ignore[union-attr]
        assert said.setdefault(name, text) == text
    alone = {name: next(iter(api.backend(path).generate([request], [[5]])))[2].text for name, path in paths.items()}  # type: ignore[union-attr]
    assert said == alone
    assert len(set(said.values())) == 3


def test_adapters_that_cannot_share_are_loaded_by_themselves(
    tiny_model: Path, adapters: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in adapters[1].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "adapter_config.json").read_text())
    for more in ({"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}):
        (other / "adapter_config.json").write_text(json.dumps({**config, **more}))
        assert serving_models._UnloadedModel("x", str(other), tmp_path, {}).share_key is None, more
    ones = [
        serving_models._UnloadedModel("x", str(adapters[0]), tmp_path, loading)
        for loading in ({}, {"dtype": "float32"})
    ]
    assert ones[0].share_key != ones[1].share_key
    assert ones[0].share_key == serving_models._UnloadedModel("b", str(tiny_model), tmp_path, {}).share_key


def test_a_real_model_prompts_that_are_too_long_and_logprobs(host: Callable[..., Host], tiny_model: Path) -> None:
    from posttrain_plugins import api

    here = host({"m": api.backend(str(tiny_model))})
    with pytest.raises(openai.BadRequestError) as long:
        here.client.chat.completions.create(model="m", messages=[{"role": "user", "content": "3|7>" * 100}])
    assert long.value.body["code"] == "context_length_exceeded"  # type: ignore[index]
    assert "256" in long.value.message
    reply = here.chat(max_tokens=6, logprobs=True, n=2, seed=3)
    for choice in reply.choices:
        tokens = choice.logprobs.content
        special = here.backends["m"].tokenizer.all_special_tokens
        assert "".join(t.token for t in tokens if t.token not in special) == choice.message.content
        assert all(token.logprob <= 0 for token in tokens)
    text = here.client.completions.create(model="m", prompt="3|7", max_tokens=4, logprobs=0).choices[0]
    assert text.logprobs is not None
    assert len(text.logprobs.tokens or ()) == len(text.logprobs.token_logprobs or ()) <= 4
    with pytest.raises(openai.BadRequestError, match="tools"):
        here.chat(tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}])


# --- the process -----------------------------------------------------------------------------------------------------


def test_importing_the_room_imports_no_server() -> None:
    code = (
        "import sys, posttrain_plugins.serve\nprint([m for m in ('fastapi', 'uvicorn', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reward_model_of_a_run_is_a_scorer_and_loaded_once(host: Callable[..., Host], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine" / "rm-0"
    (folder / "model").mkdir(parents=True)
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "class Mine:\n    def __init__(self, model_name_or_path):\n        self.path = model_name_or_path\n"
        "    def __call__(self, completions, **columns):\n        return [0.0 for _ in completions]\n"
        "class Stage:\n    reward_plugin = __file__ + ':Mine'\n"
    )
    manifest = {"key": "0", "makes": "reward", "use": "Stage", "plugin": f"{plugin}:Stage", "model_path": "model"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder.parent / "latest").mkdir()
    (folder.parent / "latest" / "rm").symlink_to(folder)
    here = host()
    here.request_gate.service.strategies.runs_dir = tmp_path / "runs"
    loaded = []
    for _ in range(2):
        assert here.chat("m@best_of_n(n=2, scorer='mine:rm')").usage.roles["mine:rm"]["calls"] == 1
        loaded.append(here.request_gate.service.strategies.scorers["mine:rm"].func)
    assert loaded[0] is loaded[1]
    assert loaded[0].path == str(folder / "model")


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="fastapi and uvicorn") as missing:
        server.serve(["x"])
    assert missing.value.hint == "pip install 'posttrain-plugins[serve]'"


def test_a_taken_port_is_told_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot listen at") as refused:
            server.serve(["no/such-model"], port=taken.getsockname()[1])
    assert "--port" in str(refused.value.hint)


class Process:
    """`posttrain serve` as a user starts it."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        command = [sys.executable, "-m", "posttrain_plugins", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(
            command, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert self.process.stderr is not None
        self.told: list[str] = []
        for line in self.process.stderr:
            self.told.append(line)
            if line.lstrip().startswith("curl"):
                break
        found = re.search(r"at (http://\S+)/v1", "".join(self.told))
        assert found, "".join(self.told)
        self.url = found[1]
        self.client = openai.OpenAI(api_key="k", base_url=f"{self.url}/v1", max_retries=0, timeout=PATIENCE_S)

    def chat(self, model: str, **fields: Any) -> Any:
        fields = {"max_tokens": 12, **fields}
        messages: Any = [{"role": "user", "content": "3|7>2<9"}]
        return self.client.chat.completions.create(model=model, messages=messages, **fields)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=PATIENCE_S).json()
        return found

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert out == ""
        return self.process.returncode, err


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts servers, and kills what is left of them."""
    running: list[Process] = []

    def start(*arguments: str) -> Process:
        running.append(Process(*arguments, cwd=tmp_path))
        return running[-1]

    yield start
    for one in running:
        one.client.close()
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.mark.slow
def test_the_official_client_against_a_real_server(
    started: Callable[..., Process], host: Callable[..., Host], tiny_model: Path, adapters: list[Path]
) -> None:
    here = started(
        f"tiny={tiny_model}", f"one={adapters[0]}", f"two={adapters[1]}", "--strategy", "vote=self_consistency(n=3)"
    )
    told = "".join(here.told)
    assert f"serving tiny, one, two at {here.url}/v1" in told
    assert "curl" in told
    assert [row.id for row in here.client.models.list()] == ["tiny", "tiny@vote", "one", "one@vote", "two", "two@vote"]
    texts = {name: here.chat(name, seed=5).choices[0].message.content for name in ("tiny", "one", "two")}
    assert len(set(texts.values())) == 3
    reply = here.chat("one@self_consistency(n=4)", extra_body={"trace": True})
    assert reply.usage.completion_tokens > 4
    assert len(reply.posttrain["trace"][0]["completions"]) == 4
    chunks = list(here.chat("tiny", seed=5, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == texts["tiny"]
    assert chunks[-1].usage.total_tokens > 0
    assert here.client.completions.create(model="two", prompt=["3|7", "4>2"], n=2, max_tokens=4).choices[3].index == 3
    with pytest.raises(openai.NotFoundError):
        here.chat("three")
    with pytest.raises(openai.BadRequestError):
        here.chat("tiny@nothing")
    check_our_own_client(f"{here.url}/v1#tiny", host)
    before = here.health()
    with ThreadPoolExecutor(16) as clients:
        replies = list(clients.map(lambda i: here.chat("tiny@vote" if i % 2 else "tiny"), range(32)))
    after = here.health()
    assert len(replies) == 32
    assert after["completions"] - before["completions"] == 64
    assert after["waves"] - before["waves"] <= 16  # batches: fewer than half as many calls as requests
    assert here.end(signal.SIGINT)[0] == 0


def check_our_own_client(url: str, host: Callable[..., Host]) -> None:
    """The server as a backend of another one: what it can do is found out, and strategies run over it."""
    from posttrain_plugins import api

    backend = api.backend(url)
    found = {name: getattr(backend.capabilities, name) for name in ("n", "prefill", "logprobs", "stop", "seed")}
    assert all(found.values()), found
    reply = host({"far": backend}).chat("far@self_consistency(n=3)", max_tokens=6)
    assert reply.usage.completion_tokens > 3
    steps = host({"far": backend}).chat("far", max_tokens=12, n=8, seed=1, stop=["3", "4", "5", "6", "7"])
    told = [choice.stop_reason for choice in steps.choices]
    assert any(told), "vLLM's field"


WAITS = """
import time
from pathlib import Path
from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.types import Generate

def waits(problem):
    completions = yield Generate(problem.prompt, params=problem.params)
    while not Path(GATE).exists():
        time.sleep(0.01)
    return choose(candidates(completions), 0)
"""


@pytest.fixture
def waiting_server(started: Callable[..., Process], tiny_model: Path, tmp_path: Path) -> Callable[..., Process]:
    """Starts a server whose `tiny@waits` answers when the file `gate` is there."""
    (tmp_path / "waits.py").write_text(WAITS.replace("GATE", repr(str(tmp_path / "gate"))))
    return lambda *arguments: started(f"tiny={tiny_model}", "--strategy", "waits=./waits.py:waits", *arguments)


@pytest.mark.slow
def test_requests_in_flight_may_finish(waiting_server: Callable[..., Process], tmp_path: Path) -> None:
    """After the signal nobody else comes in; when the last one inside has its answer, the server ends."""
    here = waiting_server("--api-key", "k", "--grace-s", "600")
    check_hung_up_clients_are_forgotten(here)
    with ThreadPoolExecutor(1) as clients:
        inside = clients.submit(here.chat, "tiny@waits")
        wait_for(lambda: here.health()["in_flight"] == 1)
        here.process.send_signal(signal.SIGTERM)
        wait_for(lambda: here.health()["status"] == "closing")
        with pytest.raises(openai.InternalServerError, match="the server ends"):
            here.chat("tiny")
        assert not inside.done()
        (tmp_path / "gate").touch()
        assert inside.result(PATIENCE_S).choices[0].message.content is not None
    _, err = here.process.communicate(timeout=PATIENCE_S)
    assert here.process.returncode == 0, err
    assert "stopping: 1 in flight, at most 600 s" in err
    assert "Traceback" not in err


def check_hung_up_clients_are_forgotten(here: Process) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    for is_streamed in (False, True):
        body = json.dumps({"model": "tiny@waits", "messages": USER, "stream": is_streamed}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "Authorization: Bearer k\r\n\r\n"
        with socket.create_connection((host, int(port))) as wire:
            wire.sendall(head.encode() + body)
            wait_for(lambda: here.health()["in_flight"] == 1)
        wait_for(lambda: here.health()["in_flight"] == 0)


@pytest.mark.slow
def test_requests_that_outlast_the_grace_are_told(waiting_server: Callable[..., Process]) -> None:
    here = waiting_server("--grace-s", "1")
    with ThreadPoolExecutor(2) as clients:
        endless = clients.submit(here.chat, "tiny@waits")
        stream = clients.submit(lambda: list(here.chat("tiny@waits", stream=True)))
        wait_for(lambda: here.health()["in_flight"] == 2)
        began = time.monotonic()
        here.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError) as late:
            endless.result(PATIENCE_S)
        assert late.value.status_code == 503
        with pytest.raises(openai.APIError, match="stopped"):
            stream.result(PATIENCE_S)
        _, err = here.process.communicate(timeout=PATIENCE_S)
    assert here.process.returncode == 0, err
    assert time.monotonic() - began >= 1
    assert "stopping: 2 in flight, at most 1 s" in err
    assert "Traceback" not in err
