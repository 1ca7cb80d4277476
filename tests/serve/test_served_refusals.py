"""What a server refuses, each with the field's name in OpenAI's error shape, and what it lets pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from scripted_server import LocalServer, ScriptedBackend

from posttrain_plugins.errors import InputError
from posttrain_plugins.serve.protocol import RequestLimits

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
    ({"model": "m@react(tools=['os:system'])"}, "model", "names a tool"),
    ({"model": "m@mixture_of_agents(proposers=['gone', 'm'])"}, "model", "no model 'gone' is served"),
    ({"model": "m@self_consistency(n=2)", "n": 2}, "n", "one answer"),
    ({"model": "m@self_consistency(n=2)", "logprobs": True}, "logprobs", "together with a strategy"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), BAD, ids=[json.dumps(row[0])[:60] for row in BAD])
def test_bad_input_is_a_400_that_names_the_field(
    open_server: Callable[..., LocalServer], fields: dict[str, Any], param: str, message: str
) -> None:
    here = open_server()
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
def test_a_body_that_is_no_json_object_is_a_400(open_server: Callable[..., LocalServer], body: bytes) -> None:
    reply = open_server().http.post("/v1/chat/completions", content=body)
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
def test_bad_text_completions(open_server: Callable[..., LocalServer], fields: dict[str, Any], param: str) -> None:
    reply = open_server().http.post("/v1/completions", json={"model": "m", **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_fields_that_change_nothing_are_accepted(open_server: Callable[..., LocalServer]) -> None:
    neutral = {
        "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"},
        "tool_choice": "auto", "top_logprobs": 0, "functions": None, "store": True, "parallel_tool_calls": True,
        "user": "u", "stop": None, "logprobs": False, "seed": None, "n": None, "max_tokens": None,
        "service_tier": "auto", "stream_options": None,
    }  # fmt: skip
    assert open_server().post(**neutral).status_code == 200


def test_unknown_models_and_routes(open_server: Callable[..., LocalServer]) -> None:
    here = open_server({"small": ScriptedBackend(), "large": ScriptedBackend()})
    with pytest.raises(openai.NotFoundError) as unknown:
        here.chat("smal")
    assert unknown.value.body["code"] == "model_not_found"  # type: ignore[index]
    assert "did you mean 'small'?" in unknown.value.message
    with pytest.raises(openai.NotFoundError, match="known: small, large"):
        here.chat("gpt-4@self_consistency(n=2)")
    for reply in (here.http.get("/v1/embeddings"), here.http.get("/v1/chat/completions")):
        assert reply.status_code in (404, 405)
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_scorers_that_need_the_reference_answer_are_refused(open_server: Callable[..., LocalServer]) -> None:
    def exact(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
        return [0.0 for _ in completions]

    with pytest.raises(InputError, match=r"needs the column solution"):
        open_server(scorers={"exact": exact})


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


def test_what_a_client_may_not_name_the_server_may(open_server: Callable[..., LocalServer], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CHATTY)
    here = open_server(named={"mine": f"{file}:Chatty(rounds=2)"})
    assert len(here.chat("m@mine").posttrain["answer"]) == 1
    assert len(here.backend.waves) == 2
    with pytest.raises(InputError, match="self_consistency"):
        open_server(named={"typo": "self_consistancy"})


def test_the_key_is_asked_for(open_server: Callable[..., LocalServer]) -> None:
    here = open_server(api_key="secret")
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


def test_large_requests_are_refused_whether_they_say_so_or_not(open_server: Callable[..., LocalServer]) -> None:
    here = open_server(limits=RequestLimits(max_body_bytes=1000))
    large = [{"role": "user", "content": "x" * 2000}]
    assert here.post(messages=large).status_code == 413
    pieces = (b"x" * 100 for _ in range(50))
    reply = here.http.post("/v1/chat/completions", content=pieces)  # chunked: no length is told
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"
    assert here.post().status_code == 200


def test_what_fails_inside_is_a_500_in_the_same_shape(open_server: Callable[..., LocalServer], tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def broken(problem):\n    raise ValueError('no good')\n    yield\n")

    def angry(completions: list[Any], **columns: Any) -> list[float]:
        raise OSError("out of paper")

    here = open_server(named={"broken": f"{file}:broken"}, scorers={"angry": angry})
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
