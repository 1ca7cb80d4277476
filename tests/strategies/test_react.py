"""ReAct: the grammar and native calls, and what a model may write instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from by_hand import FAILED, PLAIN, PROBLEM, ScriptedModel, user_text

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.strategies.react import ReAct
from posttrain_plugins.types import Completion, Problem, Result


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def look_up(word: str) -> str:
    """Say what a word means."""
    if word == "nothing":
        raise KeyError(word)
    return word + ": see elsewhere"


def tool_calls_in(result: Result) -> list[tuple[str, Any, str]]:
    return [(e["name"], e["arguments"], e["answer"]) for e in result.trace if e["kind"] == "tool"]


def solve_by_react(
    replies: Sequence[str | Completion], problem: Problem = PROBLEM, **options: Any
) -> tuple[ScriptedModel, Result]:
    backend = ScriptedModel(lambda request, draw: replies[draw])
    [result] = solve(ReAct(tools=[add, look_up], **options), [problem], backend=backend)
    assert result.error is None
    return backend, result


def test_react_text_calls_tools_and_finishes() -> None:
    replies = [
        'I add.\nAction: add[{"a": 2, "b": 2}]',
        "I look it up.\nAction: look_up[four]",
        "Now I know.\nAction: Finish[4]",
    ]
    backend, result = solve_by_react(replies)
    first, second, third = backend.asked
    assert "add[a: integer, b: integer]: Add two numbers." in user_text(first)
    assert first.params.stop == ("\nObservation:",)
    assert [m["role"] for m in third.prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert user_text(second) == "Observation: 4"
    assert user_text(third) == "Observation: four: see elsewhere"
    assert result.answer == "4"
    assert result.text.endswith("Observation: four: see elsewhere\nNow I know.\nAction: Finish[4]\n<answer>4</answer>")


def test_react_plain_text_goes_on_from_its_own_transcript() -> None:
    backend, result = solve_by_react([" one more.\nAction: add[2]", " done.\nAction: Finish[2]"], PLAIN)
    assert backend.asked[1].prompt.endswith("\nThought: one more.\nAction: add[2]\nObservation: 2\nThought:")
    assert result.answer == "2"


@pytest.mark.parametrize(
    ("action", "observation"),
    [
        ('Action: look_up["a ] b"]', "a ] b: see elsewhere"),
        ("Action: look_up[1984]", "1984: see elsewhere"),
        ("Action 1 : look_up[ f[0] ]", "f[0]: see elsewhere"),
        ("  Action: add[-3]", "-3"),
        ("Action: add[3] Action: Finish[9]", "3"),  # what follows the first action is imagined
        ("Action: add[x]", "error: add: a is 'x', expected int"),
        ("Action: look_up[nothing]", "error: KeyError"),
        ("Action: fly[home]", "error: no tool 'fly'"),
        ('Action: fly[{"to": }]', "error: no tool 'fly'"),
        ("Action: functions.look-up[x]", "x: see elsewhere"),
        ("Action: Look Up[x]", "x: see elsewhere"),
        ('Action: add[{"a": 1, "b": 2,}]', "3"),
        ('Action: add[{"a": 1 "b": 2}]', 'error: add: expected the arguments as a JSON object, {"a": "integer"'),
        ('Action: look_up[{"word": "a" "b"]}]', "error: look_up: expected the arguments as a JSON object"),
        ("Action: look_up[a=1, b=2]", "error: look_up: word is missing; no argument 'a'"),
        ("Action: look_up\nAction Input: four\nObservation: imagined\nFinal Answer: 9", "four: see elsewhere"),
        ("**Observation:** imagined\nAction: Finish[9]", "error: no action"),
        ("<think>Action: Finish[5]</think>Action: add[1, 2]", "3"),
        ("<think>I could write\nAction: Finish[5]\n", "error: no action"),
        ("Action: add[]", "error: add: a is missing"),
        ("Action: add[{1}]", "error: add: a is {1}, expected int"),
        ("Action: look_up[", "error: no action"),
        ("Action: look up four", "error: no action"),
        ("Action: Finish[ ]", "error: no action"),
        ("Action: look_up[" + "[" * 3000, "error: no action"),
        ("I think it is 4.", "error: no action"),
        ("", "error: no action"),
    ],
)
def test_react_reads_an_action_or_says_what_is_wrong(action: str, observation: str) -> None:
    backend, result = solve_by_react([f"Hm.\n{action}", "Action: Finish[4]"])
    assert user_text(backend.asked[1]).startswith(f"Observation: {observation}")
    assert "imagined" not in str(backend.asked[1].prompt)
    assert "Finish[9]" not in str(backend.asked[1].prompt[1:])
    assert result.answer == "4"


@pytest.mark.parametrize(
    ("inside", "answer"),
    [
        ("[0, 1)", "[0, 1)"),
        ('{"x": [1]}', '{"x": [1]}'),
        ("<answer>7</answer>", "7"),
        ("Jane [Austen]", "Jane [Austen]"),
        ('{"answer": "7"}', "7"),
        ('answer="7"', "7"),
        ("**7**", "7"),
        ("x = 5", "x = 5"),
        ("A*", "A*"),
    ],
)
def test_react_finishes_with_brackets_inside(inside: str, answer: str) -> None:
    assert solve_by_react([f"Action: Finish[{inside}]"])[1].answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "Final Answer: 7",
        "I know.\n**Final Answer:** 7",
        "**Final Answer: 7**",
        "### final answer:\n7",
        "Action: Finish 7",
        "Action: Finish: 7",
        "action：finish(7)",
        "Action: `Finish[7]`",
        "Finish[7]",
        'Action:\n```json\n{"action": "Final Answer", "action_input": "7"}\n```',
        "Action: None\nFinal Answer: 7",
        "Final Answer: 7\nObservation: well done",
    ],
)
def test_react_a_final_answer_costs_no_step(text: str) -> None:
    backend, result = solve_by_react([text])
    assert (result.answer, len(backend.asked)) == ("7", 1)


def test_react_tools_may_have_any_name() -> None:
    replies = ["Action: web-search[x]", "Action: api.v2/find[x]", "Action: Finish[7]"]
    backend = ScriptedModel(lambda request, draw: replies[draw])
    tools = {"web-search": look_up, "api.v2/find": look_up, "other.web_search": look_up}
    [result] = solve(ReAct(), [PROBLEM], backend=backend, tools=tools)
    assert [name for name, _, _ in tool_calls_in(result)] == ["web-search", "api.v2/find"]
    replies = [
        "Action: Web_Search[x]",
        "Action: Finish[7]",
    ]  # it may be either of two: the model is told which there are
    backend = ScriptedModel(lambda request, draw: replies[draw])
    solve(ReAct(), [PROBLEM], backend=backend, tools=tools)
    assert user_text(backend.asked[1]).startswith(
        "Observation: error: no tool 'Web_Search', expected one of: api.v2/find"
    )


def test_react_out_of_steps_is_asked_for_its_answer() -> None:
    backend, result = solve_by_react(["Action: add[1]", "Action: add[2]", "Action: Finish[3]"], max_steps=2)
    assert user_text(backend.asked[2]).startswith("Observation: 2\nThere are no steps left.")
    assert [request.purpose for request in backend.asked] == ["thought", "thought", "answer"]
    assert result.answer == "3"
    assert solve_by_react(["Action: add[1]", "so the answer is 8"], max_steps=1)[1].answer == "8"
    assert solve_by_react(["Action: add[1]", "Action: add[2] and so on and on, as ever"], max_steps=1)[1].answer is None


def test_react_a_failed_sample_is_a_step_lost_and_long_observations_are_cut() -> None:
    backend, result = solve_by_react([FAILED, "Action: look_up[abcdef]", "Action: Finish[4]"], max_observation_chars=4)
    assert user_text(backend.asked[2]) == "Observation: abcd"
    assert result.answer == "4"
    assert solve_by_react([FAILED] * 3, max_steps=2)[1].text == ""


def tool_calls(*calls: tuple[str, Any]) -> Completion:
    return Completion(
        "", finish_reason="tool_calls", tool_calls=[{"name": name, "arguments": given} for name, given in calls]
    )


def test_react_native_calls() -> None:
    replies = [tool_calls(("add", {"a": 2, "b": 2}), ("look_up", {"word": "four"})), "The answer is 4."]
    backend, result = solve_by_react(replies, mode="native")
    first, second = backend.asked
    assert [tool["function"]["name"] for tool in first.tools] == ["add", "look_up"]
    asked, *told = second.prompt[1:]
    assert asked["role"] == "assistant"
    assert [call["function"] for call in asked["tool_calls"]] == [
        {"name": "add", "arguments": {"a": 2, "b": 2}},
        {"name": "look_up", "arguments": {"word": "four"}},
    ]
    assert [(m["role"], m["content"]) for m in told] == [("tool", "4"), ("tool", "four: see elsewhere")]
    assert [m["tool_call_id"] for m in told] == [call["id"] for call in asked["tool_calls"]]
    assert (result.answer, result.text) == ("4", "The answer is 4.")


@pytest.mark.parametrize(
    ("name", "given", "observation"),
    [
        ("fly", {}, "error: no tool 'fly', expected one of: add, look_up"),
        ("", {"a": 1}, "error: no tool ''"),
        ("add", '{"a": 1,}', 'error: add: expected the arguments as a JSON object, {"a": "integer", "b": "integer"}, '),
        ("add", '{"a": 1, "b"', "error: add: expected the arguments as a JSON object"),
        ("add", '{"a": 1}{"b": 1}', "error: add: expected the arguments as a JSON object"),
        ("add", "[1, 2]", "error: add: expected the arguments as a JSON object"),
        ("add", [1, 2], "error: add: expected the arguments as a JSON object"),
        ("add", None, "error: add: a is missing"),
        ("add", "", "error: add: a is missing"),
        ("add", {"a": "1"}, "error: add: a is '1', expected int"),
        ("add", {"a": True}, "error: add: a is True, expected int"),
        ("add", {"a": 1, "c": 2}, "error: add: no argument 'c', expected one of: a, b"),
        ("add", {"a": 1}, "1"),
        ("add", '"{\\"a\\": 1}"', "1"),
        ("functions.add", {"a": 1}, "1"),
        ("look_up", '{"word": "two\nlines"}', "two\nlines: see elsewhere"),
    ],
)
def test_react_native_calls_are_made_or_the_model_is_told(name: str, given: Any, observation: str) -> None:
    replies = [tool_calls((name, given), ("look_up", {"word": "four"})), "The answer is 4."]
    backend, result = solve_by_react(replies, mode="native")
    told = [message for message in backend.asked[1].prompt if message["role"] == "tool"]
    assert told[0]["content"].startswith(observation)
    assert told[1]["content"] == "four: see elsewhere"
    [*_, asked] = [message for message in backend.asked[1].prompt if message["role"] == "assistant"]
    assert all(isinstance(call["function"]["arguments"], dict) for call in asked["tool_calls"])
    assert (result.answer, len(backend.asked)) == ("4", 2)


def test_react_native_a_wave_without_a_good_call_asks_no_tool() -> None:
    backend, result = solve_by_react([tool_calls(("add", "{"), ("add", "}")), "The answer is 4."], mode="native")
    assert tool_calls_in(result) == []
    assert [message["content"][:11] for message in backend.asked[1].prompt[2:]] == ["error: add:"] * 2


@pytest.mark.parametrize(
    "unread",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": 2,}}\n</tool_call>',
        "[TOOL_CALLS] add{a: 2}",
        "<think>I add.</think>Action: add[2]",  # the other mode's grammar
    ],
)
def test_react_native_a_call_that_nobody_could_read_is_no_answer(unread: str) -> None:
    backend, result = solve_by_react([unread, "The answer is 4."], mode="native")
    assert [message["role"] for message in backend.asked[1].prompt] == ["user", "assistant", "user"]
    assert user_text(backend.asked[1]).startswith("error: the tool call cannot be read")
    assert result.answer == "4"
    backend, result = solve_by_react([unread, "The answer is 4."], mode="native", max_steps=1)
    assert [message["role"] for message in backend.asked[1].prompt] == ["user", "assistant", "user"]
    assert user_text(backend.asked[1]).endswith("with your final answer.")


def test_react_native_a_thought_of_a_call_is_none() -> None:
    backend, result = solve_by_react(["<think>no <tool_call> here</think>The answer is 4."], mode="native")
    assert (result.answer, len(backend.asked)) == ("4", 1)


def test_react_native_endless_calls() -> None:
    replies = [tool_calls(("add", {"a": 2})), tool_calls(("add", {"a": 1})), "Action: Finish[1]"]
    backend, result = solve_by_react(replies, PLAIN, mode="native", max_steps=2)
    assert backend.asked[2].tools == ()
    assert user_text(backend.asked[2]).startswith("There are no steps left")
    assert result.answer == "1"
    assert solve_by_react([FAILED, "It is 4\n4"], mode="native")[1].answer == "4"


def test_react_native_observations_are_cut() -> None:
    replies = [tool_calls(("look_up", {"word": "abcdef"})), "The answer is 4."]
    backend, _ = solve_by_react(replies, mode="native", max_observation_chars=4)
    assert user_text(backend.asked[1]) == "abcd"
