"""What reaches the browser: nothing that tells who wrote it, and no more than a window lays out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain_plugins.annotate.shown import MOST_CHARS, MOST_LINES, MOST_STEPS, cut, rest_of, shown_item
from posttrain_plugins.decisions.item import items_of
from posttrain_plugins.errors import InputError

LONG = {
    "one word": "a" * 1_000_000,
    "lines": "line\n" * 500_000,
    "empty lines": "\n" * 5_000,
    "long lines": ("b" * 9_000 + "\n") * 60,
    "nothing": "",
    "a line too many": "x\n" * MOST_LINES + "y",
}


@pytest.mark.parametrize("name", LONG)
def test_a_text_comes_in_pages_that_are_the_text(name: str) -> None:
    pages, start = [], 0
    while True:
        page, rest = cut(LONG[name], start)
        assert len(page) <= MOST_CHARS
        assert page.count("\n") <= MOST_LINES
        pages.append(page)
        if rest is None:
            break
        assert rest > start
        start = rest
    assert "".join(pages) == LONG[name]


def item_of(row: dict[str, Any], mode: Any) -> Any:
    (item,) = items_of([row], mode, "run:stage_of_model_7b")[0]
    return item


def test_it_is_blind() -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "models": ["gpt-x", "llama-y"], "scores": [1, 2], "solution": "42"}
    sent = json.dumps(shown_item(item_of(row, "pick"), [1, 0]))
    assert [word for word in ("gpt-x", "llama", "score", "42", "model_7b", "source", "row") if word in sent] == []
    assert [part["text"] for part in shown_item(item_of(row, "pick"), [1, 0])["completions"]] == ["b", "a"]


def test_control_characters_and_turned_texts_are_written_out() -> None:
    row = {"prompt": "\x1b[31mred", "completions": ["safe\u202egnp.exe", "half \ud83d"]}
    shown = shown_item(item_of(row, "pick"), [0, 1])
    assert shown["prompt"][0]["text"] == "\\x1b[31mred"
    assert [part["text"] for part in shown["completions"]] == ["safe\\u202egnp.exe", "half \\ud83d"]
    json.dumps(shown).encode("ascii")


def test_messages_have_roles_and_calls_of_tools_a_text() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, call]
    shown = shown_item(item_of({"prompt": prompt}, "demonstration"), [])
    assert [(turn["role"], turn["text"]) for turn in shown["prompt"]] == [
        ("system", "s"), ("user", "u"), ("assistant", '[{"function": {"name": "add"}}]'),
    ]  # fmt: skip


def test_steps_come_in_pages_without_their_separator() -> None:
    text = "\n\n".join(f"step {i}" for i in range(2 * MOST_STEPS + 5))
    item = item_of({"prompt": "p", "completion": text}, "first_wrong")
    shown = shown_item(item, [0])
    assert (len(shown["steps"]), shown["step_count"]) == (MOST_STEPS, 2 * MOST_STEPS + 5)
    assert shown["steps"][1]["text"] == "step 1"
    assert [len(rest_of(item, "steps", start)["steps"]) for start in (MOST_STEPS, 2 * MOST_STEPS)] == [MOST_STEPS, 5]


@pytest.mark.parametrize("part", ["prompt:0", "completion:1"])
def test_the_rest_of_a_part_is_found(part: str) -> None:
    item = item_of({"prompt": LONG["one word"], "completions": ["x", LONG["one word"]]}, "pick")
    assert rest_of(item, part, 999_999) == {"text": "a", "rest": None}


@pytest.mark.parametrize("part", ["prompt:1", "completion:9", "completion:-1", "row:0", "", "step:0", "prompt:x"])
def test_there_are_no_other_parts(part: str) -> None:
    with pytest.raises(InputError, match="no part"):
        rest_of(item_of({"prompt": "p", "completions": ["x", "y"]}, "pick"), part, 0)
