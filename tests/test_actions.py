"""Actions and arguments as chat models write them: read where they have one plain meaning, else refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from posttrain_plugins.text.actions import read_action, read_arguments, read_object
from posttrain_plugins.text.readers import reading

QUERY = {"query": {"type": "string"}, "limit": {"type": "integer"}}
SEARCH = {"name": "search", "parameters": {"properties": QUERY}}
NUMBERS = {"name": "calc", "parameters": {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}}


@pytest.mark.parametrize(
    "text",
    [
        "Action: search[x]",
        "action: search[x]",
        "ACTION 12 : search[x]",
        "Action #1: search[x]",
        "Action：search[x]",
        "Action:search[x]",
        "   Action: search[x]",
        "- Action: search[x]",
        "* **Action**: search[x]",
        "1. Action: search[x]",
        "2) Action: search[x]",
        "> Action: search[x]",
        "### Action: search[x]",
        "### Action\n\nThought: so\nAction: search[x]",
        "**Action:** search[x]",
        "**Action: search[x]**",
        "Action: **search**[x]",
        "Action: `search[x]`",
        "`Action: search[x]`",
        "Action: `search`[x]",
        "Action: search [x]",
        "Action:\nsearch[x]",
        "Action:\n\n```\nsearch[x]\n```",
        "```\nAction: search[x]\n```",
        "Thought: I look. Action: search[x]",
        "Thought: Action: search[x]",
        "I need it! Action: search[x]",
        "Action: search(x)",
        "Action: search\nAction Input: x",
        "Action: search\n\nAction Input: x\n",
        "Action: [search]\nAction Input: x",
        "**Action:** search\n**Action Input:** x",
        "- Action: `search`\n- Action Input: x\n- Observation: y",
        "Action: search\nAction Input: ```\nx\n```",
        "Action: search\nInput: x\n\nThought: I wait",
        "Action 1: search\nAction Input 1: x\nObservation 1: y\nAction 2: search\nAction Input 2: z",
        "Action: search\nAction Input: x Observation: y",
        "Action: None\nAction: search[x]",
        "<think>Action: Finish[9]</think>\nAction: search[x]",
        "Action: search[x] Action: Finish[9]",
        "Action: search[x]\nObservation: y\nAction: Finish[9]",
        'Action: {"action": "search", "action_input": "x"}',
        'Action:\n```json\n{"action": "search", "action_input": "x"}\n```',
        "Action:\n```\n{'name': 'search', 'arguments': 'x',}\n```",
        '<tool_call>\n{"name": "search", "arguments": "x"}\n</tool_call>',
    ],
)
def test_an_action_is_read_in_every_form(text: str) -> None:
    name, inside, end = read_action(text)
    assert (name, inside) == ("search", "x")
    assert "Finish" not in text[:end].rpartition("</think>")[2]
    assert "Observation" not in text[:end]
    assert read_action(text[:end])[:2] == (name, inside)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I will search for x.",
        "Action: search for x",
        "Action: None",
        "Action: search[x",
        "Actions: search[x]",
        "The Action: search[x]",
        "Observation: y\nAction: search[x]",
        "**Observation 1:** y\nAction: search[x]",
        "<think>\nAction: search[x]",
        "Action: {}",
        'Action: {"query": "x"}',
        'Action: {"action": "search", "action_input": ',
        "-" * 100_000,
        "Action: search[" + "[" * 3000,
        "Action: search[" + "(" * 3000 + "]" * 3000 + "\x00",
    ],
)
def test_no_action_is_read_where_there_is_none(text: str) -> None:
    name, inside, _ = read_action(text)
    assert name == "" or inside.startswith("(((")


def test_a_thought_that_the_prompt_opens_holds_no_action() -> None:
    thought = "I could write\nAction: Finish[9]\n"
    for prompt in ("?<think>\n", [{"role": "assistant", "content": "[THINK]"}]):
        assert read_action(thought, prompt) == ("", "", len(thought))
        assert read_action(f"{thought}</think>\nAction: search[x]", "?<think>")[:2] == ("search", "x")
    with reading(is_thinking=True):
        assert read_action(thought, [{"role": "user", "content": "?"}]).name == ""
        assert read_action(thought, "?").name == "Finish"


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ("", {}),
        ("x y", {"query": "x y"}),
        ('"x y"', {"query": "x y"}),
        ("'x y'", {"query": "x y"}),
        ("`x y`", {"query": "x y"}),
        ("1984", {"query": "1984"}),
        ("007", {"query": "007"}),
        ("Paris, France", {"query": "Paris, France"}),
        ("[1, 2]", {"query": "[1, 2]"}),
        ("...", {"query": "..."}),
        ("{x | x > 0}", {"query": "{x | x > 0}"}),
        ('it\'s a "test"', {"query": 'it\'s a "test"'}),
        ("a == b", {"query": "a == b"}),
        ('{"query": "x"}', {"query": "x"}),
        ('{"query": "x",}', {"query": "x"}),
        ("{'query': 'x', 'limit': 2}", {"query": "x", "limit": 2}),
        ("{'query': \"it's\", 'limit': None}", {"query": "it's", "limit": None}),
        ('{"query": "two\nlines"}', {"query": "two\nlines"}),
        ('{"query": "\\d+ \\\\d"}', {"query": "\\d+ \\d"}),
        ('```json\n{"query": "x"}\n```', {"query": "x"}),
        ('"{\\"query\\": \\"x\\"}"', {"query": "x"}),
        ('query="x y", limit=2', {"query": "x y", "limit": 2}),
        ('query="a, limit=3"', {"query": "a, limit=3"}),
        ("query=x y, limit=2", {"query": "x y", "limit": 2}),
        ("query: x y, limit: 2", {"query": "x y", "limit": 2}),
        ("query: x\nlimit: 2", {"query": "x", "limit": 2}),
        ('"x", 2', {"query": "x", "limit": 2}),
        ("a=1, b=2", {"a": 1, "b": 2}),  # refused where the tool is called, which has neither
        ('{"query": x}', None),
        ('{"query": "x"', None),
        ("{query: }", None),
        ('{"query": "x"}{"query": "y"}', None),
        ("{\u201cquery\u201d: \u201cx\u201d}", None),
    ],
)
def test_arguments_are_read_or_refused(inside: str, arguments: dict[str, Any] | None) -> None:
    assert read_arguments(inside, SEARCH) == arguments


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ("1, 2", {"a": 1, "b": 2}),
        ("a=1, b=2", {"a": 1, "b": 2}),
        ("a = 1", {"a": 1}),
        ("a: 1, b: -2", {"a": 1, "b": -2}),
        ("1, b=2", {"a": 1, "b": 2}),
        ("x", {"a": "x"}),
        ("1 2", {"a": "1 2"}),
        ("-" * 20_000 + "1", {"a": "-" * 20_000 + "1"}),
    ],
)
def test_arguments_go_by_name_or_by_place(inside: str, arguments: dict[str, Any]) -> None:
    assert read_arguments(inside, NUMBERS) == arguments


def test_a_tool_without_parameters_takes_nothing() -> None:
    assert [read_arguments(inside, {}) for inside in ("", "now", "{}", '{"a": 1}')] == [{}, {}, {}, {"a": 1}]


@pytest.mark.parametrize("given", ["", "  ", "null", None, {}, "{}", '"{}"', '""'])
def test_a_native_call_may_have_no_arguments(given: Any) -> None:
    assert read_object(given) == {}


@pytest.mark.parametrize("given", ["{", "[]", "1", '{"a": 1}{}', '"a"', 0, [], "[" * 100_000])
def test_a_native_call_with_anything_else_is_refused(given: Any) -> None:
    assert read_object(given) is None


PIECES = (
    *(
        "Action:",
        "Action Input:",
        "Final Answer:",
        "Thought:",
        "Observation:",
        "Action\uff1a",
        "search",
        "Finish",
        "query",
    ),
    *(
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        '"',
        "'",
        ",",
        ":",
        "=",
        "1",
        "-",
        "\n",
        " ",
        "```",
        "json",
        "**",
        "`",
        "#",
        "*x",
        "...",
    ),
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "\\",
        "\\u",
        "\\x",
        "\x00",
        "\ud83d",
        "lambda:",
        "b''",
        "1j",
        "1e999",
        "\u0663",
    ),
)


def test_no_text_makes_a_reader_raise() -> None:
    """With warnings as errors, which Python's own parser would give of escapes that it does not know."""
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 25)))
        for given in (text, f"Action: search[{text}", f"Action: search\nAction Input: {text}"):
            action = read_action(given)
            assert 0 <= action.end <= len(given)
            found = [read_arguments(action.inside, function) for function in ({}, SEARCH, NUMBERS)]
            assert all(one is None or all(isinstance(key, str) for key in one) for one in (*found, read_object(text)))
