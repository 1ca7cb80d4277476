"""What a server answers, read by the official client: choices, usage, streams, tools, strategies."""

from __future__ import annotations

import json
from collections.abc import Callable

import openai
import pytest
from scripted_server import USER, LocalServer, ScriptedBackend, brevity

from posttrain_plugins.serve.protocol import RequestLimits
from posttrain_plugins.serve.replies import Choice
from posttrain_plugins.types import Budget, Completion


def test_chat_gives_n_choices_and_the_usage(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
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


def test_a_seed_fixes_the_answer_and_without_one_answers_differ(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
    texts = [[c.message.content for c in here.chat(n=8, seed=s).choices] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    free = [[c.message.content for c in here.chat(n=8).choices] for _ in range(2)]
    assert free[0] != free[1]


def test_a_strategy_in_the_model_name(open_server: Callable[..., LocalServer]) -> None:
    here = open_server(scorers={"short": brevity})
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


def test_greedy_is_greedy_whatever_the_client_sends(open_server: Callable[..., LocalServer]) -> None:
    assert open_server().chat("m@greedy", temperature=1.0).choices[0].message.content == "answer is 7"


def test_streams_are_the_finished_text_in_pieces(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
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


def test_a_stream_that_waits_sends_comments_and_ends_with_done(open_server: Callable[..., LocalServer]) -> None:
    here = open_server(keep_alive_s=0.0)
    here.backend.delay_s = 0.7
    text = here.post(stream=True).text
    lines = [line for line in text.split("\n") if line]
    assert lines[0] == ": the answer is not finished"
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line[6:]) for line in lines if line.startswith("data: {"))


def test_text_completions_of_several_prompts(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
    reply = here.client.completions.create(model="m", prompt=["a", "b"], n=2, seed=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.object == "text_completion"
    (wave,) = here.backend.waves
    assert [(request.prompt, request.n) for request in wave] == [("a", 2), ("b", 2)]
    chunks = list(here.client.completions.create(model="m@greedy", prompt="a", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "answer is 7"


def test_a_last_assistant_message_is_gone_on_from(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
    here.client.chat.completions.create(
        model="m",
        messages=[*USER, {"role": "assistant", "content": "It is"}],  # type: ignore[list-item]
    )
    assert here.backend.waves[0][0].prompt[-1] == {"role": "assistant", "content": "It is"}


def test_native_tools_there_and_back(open_server: Callable[..., LocalServer]) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    here = open_server()
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


def test_content_blocks_and_developer_messages_are_read(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
    blocks = [{"type": "text", "text": "2+3"}, {"type": "text", "text": "=?"}]
    here.post(messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": blocks}])
    assert here.backend.waves[0][0].prompt == [{"role": "system", "content": "be brief"}, *USER]


def test_models_are_listed_with_the_servers_own_strategies(open_server: Callable[..., LocalServer]) -> None:
    here = open_server({"a": ScriptedBackend("a"), "b": ScriptedBackend("b")}, named={"vote": "self_consistency(n=3)"})
    rows = here.client.models.list().data
    assert [row.id for row in rows] == ["a", "a@vote", "b", "b@vote"]
    assert "self_consistency" in rows[0].strategies  # type: ignore[attr-defined]
    assert here.client.models.retrieve("a@vote").id == "a@vote"
    assert here.chat("b@vote").usage.completion_tokens == 9
    assert [len(backend.waves) for backend in here.backends.values()] == [0, 1]
    with pytest.raises(openai.NotFoundError, match="did you mean"):
        here.client.models.retrieve("a@vot")


def test_other_served_models_are_roles(open_server: Callable[..., LocalServer]) -> None:
    here = open_server({"a": ScriptedBackend("a"), "b": ScriptedBackend("b")})
    reply = here.chat("a@mixture_of_agents(proposers=['a', 'b'], aggregator=b)")
    assert {"a", "b"} <= set(reply.usage.roles)
    assert all(backend.waves for backend in here.backends.values())


def test_a_budget_ends_a_strategy_with_its_best_so_far(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
    reply = here.chat("m@adaptive_consistency(n=64, tau=0.999999)", extra_body={"budget": {"completions": 2}})
    assert reply.posttrain["stopped_by"] == "completions"
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content.startswith("answer is")
    capped = open_server(limits=RequestLimits(budget=Budget(completions=3)))
    assert (
        capped.chat("m@self_consistency(n=50)", extra_body={"budget": {"completions": 9}}).usage.completion_tokens == 9
    )
    assert len(capped.chat(n=5).choices) == 3


def test_arguments_that_are_no_object_go_on_as_the_model_wrote_them() -> None:
    calls = [{"name": "add", "arguments": '{"a": 2,}'}, {"name": "add", "arguments": {"a": 2}}]
    message = Choice(Completion("", "tool_calls", tool_calls=calls)).to_json(0, is_chat=True)["message"]
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == ['{"a": 2,}', '{"a": 2}']
