"""Rows that a trainer could not take are found, with what mends them."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain_plugins.rows.shape import check_rows

USER = {"role": "user", "content": "1>2"}
ANSWER = {"role": "assistant", "content": "2"}
ALL = ("messages", "prompt", "completion", "chosen", "rejected", "completions", "label", "labels")


@pytest.mark.parametrize(
    ("rows", "found", "hint"),
    [
        (
            [{"messages": [{"from": "human", "value": "1"}]}],
            "'messages[0]' is an object with from, value",
            "format: sharegpt",
        ),
        ([{"messages": []}], "'messages' is an empty list, expected at least one message", "remove the row"),
        ([{"messages": [USER, {"role": "assistant", "content": None}]}], "'messages[1].content' is null", "tool_calls"),
        ([{"messages": "1>2"}], "'messages' is \"1>2\", expected a list of messages", "format"),
        ([{"messages": ["1>2"]}], "'messages[0]' is \"1>2\", expected a message", "sharegpt"),
        ([{"prompt": "a", "completion": 2}], "'completion' is 2, expected text or a list of messages", '"2"'),
        ([{"prompt": "a", "completion": None}], "'completion' is null", "fill it"),
        ([{"prompt": "a", "completion": {"text": "b"}}], "expected text or a list of messages", "rename"),
        (
            [{"prompt": "a", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}],
            "beside a prompt that is text",
            "ultrafeedback",
        ),
        (
            [{"prompt": [USER], "completion": "2"}],
            "'completion' is text beside a prompt that is a list of messages",
            "same form",
        ),
        ([{"prompt": "a"}, {"prompt": [USER]}], "'prompt' is a list of messages, where row 1 has text", "split"),
        ([{"label": "true"}], "'label' is \"true\", expected true or false", "types: {label: bool}"),
        ([{"completions": "a b"}], "'completions' is \"a b\", expected a list of texts", "prm800k"),
        ([{"completions": ["a"], "labels": [True, False]}], "a list of 2, with 1 completions", "mend"),
        (
            [{"completions": ["a"], "labels": ["yes"]}],
            "expected a list of true and false, or of numbers",
            "one for each",
        ),
        ([{"completions": ["a"], "labels": [float("nan")]}], "or of numbers", "one for each"),
        ([{"completions": ["a"], "labels": [None]}], "or of numbers", "one for each"),
        ([{"messages": [{"role": "user", "content": 5}]}], "'messages[0].content' is 5, expected text", '"5"'),
    ],
)
def test_what_a_trainer_could_not_take(rows: list[dict[str, Any]], found: str, hint: str) -> None:
    good = {name: value for name, value in {"prompt": "x", "completion": "y"}.items() if name in rows[0]}
    mistake = check_rows(
        [good, *rows] if good and len(rows) == 1 and isinstance(rows[0].get("prompt"), str) else rows, ALL
    )
    assert mistake is not None
    assert found in str(mistake)
    assert hint in mistake.hint


@pytest.mark.parametrize(
    "row",
    [
        {"completions": ["a", "b"], "labels": [0.25, 1.0]},  # shares of right rollouts
        {"messages": [USER, ANSWER]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "1>2"}]}, ANSWER]},
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
        {"prompt": "a", "solution": 5, "other": None},
    ],
)
def test_what_it_can(row: dict[str, Any]) -> None:
    assert check_rows([row, row], ALL) is None


def test_only_what_a_stage_reads_is_looked_at() -> None:
    assert check_rows([{"prompt": "a", "messages": []}], ("prompt",)) is None
