"""What a server says, read as completions: texts, thoughts, parts, refusals, stop strings, counters."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain_plugins.backends.openai.format import completions_of
from posttrain_plugins.backends.openai.http import Reply
from posttrain_plugins.types import Completion, SamplingParams, Usage


def read(message: dict[str, Any], finish: str | None = "stop", **fields: Any) -> Completion:
    stop = fields.pop("stop", ())
    choice = {"message": message, "finish_reason": finish, **fields}
    [completion] = completions_of(Reply({"choices": [choice]}), SamplingParams(stop=stop), 1)
    return completion


CALLS = [{"function": {"name": "f", "arguments": "{}"}}]
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "maybe 7"}]}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "5"}, "5"),
        ({"content": None}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": [{"type": "output_text", "text": "5"}]}, "5"),
        ({"content": ["a", {"text": "b"}, {"type": "image_url", "image_url": None}, None]}, "ab"),
        ({"content": [THOUGHT, {"type": "text", "text": "5"}]}, "<think>\nmaybe 7\n</think>\n\n5"),
        ({"content": [{"type": "thinking", "thinking": "maybe"}, "5"]}, "<think>\nmaybe\n</think>\n\n5"),
        (
            {"content": [{"type": "reasoning", "summary": [{"text": "maybe"}]}, {"type": "text", "text": "5"}]},
            "<think>\nmaybe\n</think>\n\n5",
        ),
        ({"content": "5", "reasoning_content": "2 and 3"}, "<think>\n2 and 3\n</think>\n\n5"),
        ({"content": "5", "reasoning": "2 and 3"}, "<think>\n2 and 3\n</think>\n\n5"),
        ({"content": None, "refusal": "I can't"}, "I can't"),
        ({"content": [{"type": "refusal", "refusal": "I can't"}]}, "I can't"),
    ],
)
def test_content_is_read_as_text_and_thought(message: dict[str, Any], text: str) -> None:
    completion = read(message)
    assert (completion.text, completion.finish_reason, completion.error) == (text, "stop", None)


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_a_thought_that_nothing_follows_is_not_closed(finish: str) -> None:
    completion = read({"content": None, "reasoning_content": "Is it \\boxed{7}?"}, finish)
    assert (completion.text, completion.finish_reason) == ("<think>\nIs it \\boxed{7}?", finish)
    called = read({"content": None, "reasoning_content": "I call it.", "tool_calls": CALLS}, "tool_calls")
    assert (called.text, called.tool_calls) == ("<think>\nI call it.\n</think>\n\n", [{"name": "f", "arguments": {}}])


def test_our_own_line_breaks_end_no_completion() -> None:
    message = {"content": "one\n\ntwo", "reasoning_content": "a thought"}
    completion = read(message, stop=("\n\n",))
    assert (completion.text, completion.stop_reason) == ("<think>\na thought\n</think>\n\none", "\n\n")
    within = read({**message, "reasoning_content": "a;b"}, stop=(";",))
    assert (within.text, within.stop_reason) == ("<think>\na", ";")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"finish": "content_filter"}, "content_filter"),
        ({"finish": "error", "error": {"message": "Provider failed", "code": 502}}, "Provider failed"),
        ({"finish": None, "error": "gone"}, "gone"),
    ],
)
def test_a_choice_that_failed_is_a_failed_sample(fields: dict[str, Any], error: str) -> None:
    completion = read({"content": "begun"}, **fields)
    assert (completion.finish_reason, completion.text) == ("error", "begun")
    assert completion.error == f"the server ended the completion: {error}"


@pytest.mark.parametrize(
    "usage", [None, {}, "none", [], {"prompt_tokens": None}, {"prompt_tokens": 3.0, "completion_tokens": 5}]
)
def test_counters_that_are_missing_are_zero(usage: Any) -> None:
    payload = {"choices": [{"text": "a"}, {"text": "bbb"}], "usage": usage}
    first, second = completions_of(Reply(payload), SamplingParams(), 2)
    is_counted = isinstance(usage, dict) and len(usage) == 2
    assert first.usage + second.usage == (Usage(3, 5, calls=1) if is_counted else Usage(calls=1))
