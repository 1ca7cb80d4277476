"""Rows of well-known data sets become TRL's columns; each fixture is written after the set's public card."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain_plugins.errors import InputError
from posttrain_plugins.rows.formats import FORMATS, convert
from posttrain_plugins.rows.shape import check_rows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered, and LLaMA-Factory's `system` beside it
SHAREGPT: dict[str, Any] = {
    "id": "a1",
    "system": "Be brief.",
    "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
}
# https://huggingface.co/datasets/tatsu-lab/alpaca
ALPACA: dict[str, Any] = {"instruction": "Add them.", "input": "2, 3", "output": "5", "text": "Below is ..."}
# https://platform.openai.com/docs/guides/fine-tuning, supervised, with a call of a tool
OPENAI: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "content": "Rain.", "weight": 1},
    ]
}
# https://developers.openai.com/api/docs/guides/direct-preference-optimization
OPENAI_PREFERENCE: dict[str, Any] = {
    "input": {"messages": [user("Hello")], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [assistant("Good day.")],
    "non_preferred_output": [assistant("What?")],
}
# https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized
BINARIZED: dict[str, Any] = {
    "prompt": "Name a colour.",
    "prompt_id": "f0",
    "chosen": [user("Name a colour."), assistant("Blue.")],
    "rejected": [user("Name a colour."), assistant("Dog.")],
    "messages": [user("Name a colour."), assistant("Blue.")],
    "score_chosen": 8.0,
    "score_rejected": 2.0,
}
# https://huggingface.co/datasets/openbmb/UltraFeedback
ULTRAFEEDBACK: dict[str, Any] = {
    "source": "evol_instruct",
    "instruction": "Name a colour.",
    "models": ["a", "b", "c"],
    "completions": [
        {"model": "a", "response": "Dog.", "overall_score": 2.0},
        {"model": "b", "response": "Blue.", "overall_score": 8.5},
        {"model": "c", "response": "Red?", "overall_score": 6.0},
    ],
}
# https://huggingface.co/datasets/Anthropic/hh-rlhf
HH: dict[str, Any] = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a colour.\n\nAssistant: Blue.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a colour.\n\nAssistant: Dog.",
}
# https://github.com/openai/prm800k
PRM800K: dict[str, Any] = {
    "labeler": "x",
    "question": {"problem": "1+1+1?", "ground_truth_answer": "3"},
    "label": {
        "steps": [
            {
                "completions": [{"text": "1+1=2", "rating": 1, "flagged": False}],
                "human_completion": None,
                "chosen_completion": 0,
            },
            {
                "completions": [{"text": "2+1=4", "rating": -1}, {"text": "2+1 is odd", "rating": 0}],
                "human_completion": None,
                "chosen_completion": 1,
            },
            {"completions": [{"text": "So 5.", "rating": -1}], "human_completion": None, "chosen_completion": None},
            {"completions": [{"text": "Done.", "rating": 1}], "human_completion": None, "chosen_completion": None},
        ],
        "finish_reason": "found_error",
    },
}

EXPECTED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "sharegpt",
        SHAREGPT,
        {"id": "a1", "messages": [{"role": "system", "content": "Be brief."}, user("2+2?"), assistant("4")]},
    ),
    ("alpaca", ALPACA, {"prompt": [user("Add them.\n\n2, 3")], "completion": [assistant("5")]}),
    ("alpaca", {**ALPACA, "input": ""}, {"prompt": [user("Add them.")], "completion": [assistant("5")]}),
    (
        "openai",
        OPENAI_PREFERENCE,
        {"prompt": [user("Hello")], "chosen": [assistant("Good day.")], "rejected": [assistant("What?")]},
    ),
    (
        "ultrafeedback",
        BINARIZED,
        {
            "prompt_id": "f0",
            "score_chosen": 8.0,
            "score_rejected": 2.0,
            "prompt": [user("Name a colour.")],
            "chosen": [assistant("Blue.")],
            "rejected": [assistant("Dog.")],
        },
    ),
    (
        "ultrafeedback",
        ULTRAFEEDBACK,
        {
            "source": "evol_instruct",
            "models": ["a", "b", "c"],
            "prompt": [user("Name a colour.")],
            "chosen": [assistant("Blue.")],
            "rejected": [assistant("Dog.")],
            "margin": 6.5,
        },
    ),
    (
        "hh",
        HH,
        {
            "prompt": [user("Hi"), assistant("Hello."), user("Name a colour.")],
            "chosen": [assistant("Blue.")],
            "rejected": [assistant("Dog.")],
        },
    ),
    (
        "prm800k",
        PRM800K,
        {
            "labeler": "x",
            "prompt": "1+1+1?",
            "completions": ["1+1=2", "2+1 is odd", "So 5."],
            "labels": [True, True, False],
            "solution": "3",
        },
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), EXPECTED)
def test_a_row_becomes_trls(name: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    found = convert([row], name, lambda index: f"data.jsonl:{index + 1}")
    assert found == [expected]
    columns = set(expected) & {"messages", "prompt", "completion", "chosen", "rejected", "completions", "labels"}
    assert check_rows(found, columns) is None


def test_every_format_has_a_fixture() -> None:
    assert {name for name, _, _ in EXPECTED} == set(FORMATS)


def test_calls_of_tools_become_objects() -> None:
    (row,) = convert([OPENAI], "openai", str)
    assert row["messages"][1] == user("Weather in Oslo?")
    assert row["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert row["messages"][4] == assistant("Rain.")


def test_nobody_preferred_one() -> None:
    equal = {
        **ULTRAFEEDBACK,
        "completions": [{"response": "a", "overall_score": 3.0}, {"response": "b", "overall_score": 3.0}],
    }
    assert convert([equal], "ultrafeedback", str) == []


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("sharegpt", {"text": "x"}, "d.jsonl:1: not of the format 'sharegpt': no 'messages', the row has text"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "a turn is from 'alien', expected one of"),
        ("alpaca", {"instruction": "x"}, "no 'output'"),
        ("hh", {"chosen": "hello", "rejected": "bye"}, "the text begins 'hello'"),
        (
            "ultrafeedback",
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "do not begin",
        ),
        ("prm800k", {"question": {"problem": "x"}, "label": {"steps": []}}, "no step has a rating"),
    ],
)
def test_a_row_of_another_form_is_refused(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert([row], name, lambda index: f"d.jsonl:{index + 1}")
