"""OpenAI's JSON without a server: tool calls as they come and go."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain_plugins.backends.openai.format import body_of, completions_of
from posttrain_plugins.backends.openai.http import Reply
from posttrain_plugins.backends.openai.probe import RouteProfile
from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.types import Generate, SamplingParams


@pytest.mark.parametrize(
    ("call", "read"),
    [
        ({"function": {"name": "f", "arguments": '{"a": 1'}}, {"name": "f", "arguments": '{"a": 1'}),
        ({"function": {"name": "f", "arguments": "[1]"}}, {"name": "f", "arguments": "[1]"}),
        ({"function": {"name": "f", "arguments": None}}, {"name": "f", "arguments": {}}),
        ({"function": {"name": "f"}}, {"name": "f", "arguments": {}}),
        ({"function": {"arguments": "{}"}}, {"name": "", "arguments": {}}),
        ({"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1}}),
    ],
)
def test_a_faulty_call_is_the_models_and_no_failed_sample(call: dict[str, Any], read: dict[str, Any]) -> None:
    payload = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    [completion] = completions_of(Reply(payload), SamplingParams(), 1)
    assert (completion.finish_reason, completion.tool_calls) == ("tool_calls", [read])


def test_calls_are_sent_with_their_arguments_as_json_text() -> None:
    def call(arguments: Any) -> dict[str, Any]:
        return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}

    told = [{"role": "user", "content": "?"}, {"role": "tool", "tool_call_id": "1", "content": "2"}]
    asks = {"role": "assistant", "content": "", "tool_calls": [call({"a": "é"}), call('{"b": 1}'), call(None)]}
    body = body_of(RouteProfile(Capabilities()), Generate([told[0], asks, told[1]]), [0])
    assert body["messages"][1]["tool_calls"] == [call('{"a": "é"}'), call('{"b": 1}'), call("{}")]
    assert [body["messages"][0], body["messages"][2]] == told
    assert asks["tool_calls"][0] == call({"a": "é"})  # ours stay as they are
