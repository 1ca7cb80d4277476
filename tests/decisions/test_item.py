"""What a person is asked is known by its content, and what they answer must answer it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.decisions.item import (
    Decision,
    Item,
    check_decision,
    default_mode,
    items_of,
    read_items,
    write_items,
)
from posttrain_plugins.errors import InputError

CHAT = [{"role": "user", "content": "2+2?"}]


def one(row: dict[str, Any], mode: Any, **options: Any) -> Item:
    return items_of([row], mode, **options)[0][0]


def test_an_item_is_known_by_its_content() -> None:
    first = one({"prompt": "p", "completions": ["a", "b", "c"], "solution": "4"}, "pick", source="r:s")
    assert first.id == one({"prompt": "p", "completions": ["c", "a", "b"], "reward": 1}, "pick").id
    assert first.completions == ("a", "b", "c")
    assert first.row == {"solution": "4"}  # what is judged does not go on as a column
    others = [
        one({"prompt": "p", "completions": ["a", "b"]}, "pick"),
        one({"prompt": "q", "completions": ["a", "b", "c"]}, "pick"),
        one({"prompt": "p", "completions": ["a", "b", "c"]}, "rank"),
        one({"prompt": "p", "completion": "a\n\nb"}, "first_wrong"),
        one({"prompt": "p", "completion": "a\n\nb"}, "first_wrong", separator="\n"),
        one({"prompt": "p", "completion": "a\n\nb"}, "accept"),
    ]
    assert len({first.id, *(other.id for other in others)}) == 7


def test_each_text_is_shown_once_and_what_leaves_no_choice_is_counted() -> None:
    rows = [
        {"prompt": "p", "completions": ["a", "a", "b"]},
        {"prompt": "q", "completions": ["a", "a", "a"]},
        {"prompt": "p", "completions": ["b", "a"]},
    ]
    items, left_out = items_of(rows, "pick")
    assert [(item.prompt, item.completions) for item in items] == [("p", ("a", "b"))]
    assert left_out == 1


def test_rows_with_one_prompt_are_one_choice() -> None:
    rows = [{"prompt": CHAT, "completion": [{"role": "assistant", "content": text}], "n": text} for text in "abab"]
    items, _ = items_of(rows, "rank")
    assert [len(item.completions) for item in items] == [2]
    assert items[0].row == {"n": "a"}


@pytest.mark.parametrize(
    ("row", "mode", "completions", "steps"),
    [
        ({"prompt": "p"}, "demonstration", (), ()),
        ({"prompt": "p", "completion": "draft"}, "demonstration", ("draft",), ()),
        ({"prompt": CHAT, "completion": "a"}, "accept", ("a",), ()),
        ({"prompt": "p", "completion": "a\n\nb\n\nc"}, "first_wrong", ("a\n\nb\n\nc",), ("a\n\n", "b\n\n", "c")),
        ({"prompt": "p", "completion": None, "completions": ["a", "b"]}, "pick", ("a", "b"), ()),
    ],
)
def test_each_mode_reads_its_columns(row: dict[str, Any], mode: Any, completions: tuple, steps: tuple) -> None:
    item = one(row, mode)
    assert (item.completions, item.steps) == (completions, steps)


def test_several_completions_are_accepted_one_by_one() -> None:
    items, _ = items_of([{"prompt": "p", "completions": ["a", "b", "a"]}], "accept")
    assert [item.completions for item in items] == [("a",), ("b",)]
    assert items_of([{"prompt": "p", "completion": ""}], "first_wrong") == ([], 1)


def test_columns_suggest_a_mode() -> None:
    assert default_mode({"prompt": "p"}) == "demonstration"
    assert default_mode({"prompt": "p", "completion": "a", "completions": None}) == "accept"
    assert default_mode({"prompt": "p", "completions": ["a"]}) == "pick"


@pytest.mark.parametrize(
    ("row", "mode", "message"),
    [
        ({"prompt": "p"}, "pick", "judges completions: row 1 has prompt"),
        ({"prompt": "p"}, "accept", "judges completions"),
        ({"question": "p"}, "demonstration", "row 1 has question, expected text or messages"),
        ({"prompt": None}, "demonstration", "the prompt None"),
        ({"prompt": []}, "demonstration", "expected text or messages"),
        ({"prompt": "p", "completions": list("abcdefghij")}, "rank", "10 completions, expected at most 9"),
        ({"prompt": "p"}, "vote", "unknown mode 'vote'"),
    ],
)
def test_rows_that_cannot_be_asked_are_refused(row: dict[str, Any], mode: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        items_of([row], mode)


def test_items_are_read_as_they_were_written(tmp_path: Path) -> None:
    items = [
        one({"prompt": CHAT, "completions": ["a\u2028", "\ud800"], "solution": 4}, "pick", source="r:s"),
        one({"prompt": "p", "completion": "a\n\nb"}, "first_wrong"),
    ]
    write_items(tmp_path / "items.jsonl", items)
    assert read_items(tmp_path / "items.jsonl") == items


PICK = one({"prompt": "p", "completions": ["a", "b", "c"]}, "pick")
RANK = one({"prompt": "p", "completions": ["a", "b", "c"]}, "rank")
ACCEPT = one({"prompt": "p", "completion": "a"}, "accept")
STEPS = one({"prompt": "p", "completion": "a\n\nb"}, "first_wrong")
WRITE = one({"prompt": "p"}, "demonstration")


@pytest.mark.parametrize(
    ("item", "answer", "is_answer"),
    [
        (PICK, {"choice": 2, "shown": (2, 0, 1)}, True),
        (PICK, {"choice": 3}, False),
        (PICK, {"none_good": True}, True),
        (PICK, {"none_good": True, "choice": 0}, False),
        (PICK, {"choice": 0, "shown": (0, 1)}, False),
        (PICK, {"choice": 0, "shown": (0, 1, 1)}, False),
        (PICK, {}, False),
        (PICK, {"flag": True}, True),
        (RANK, {"order": ((1,), (0, 2))}, True),
        (RANK, {"order": ((0, 1, 2),)}, True),
        (RANK, {"order": ((1,), (0,))}, False),
        (RANK, {"order": ((1,), (0, 2), ())}, False),
        (RANK, {"order": ((1,), (0, 2), (2,))}, False),
        (RANK, {"none_good": True}, True),
        (RANK, {"order": ((0,), (1,), (2,)), "none_good": True}, True),
        (ACCEPT, {"verdict": False}, True),
        (ACCEPT, {"choice": 0}, False),
        (STEPS, {"first_wrong": 0}, True),
        (STEPS, {"first_wrong": 2}, True),
        (STEPS, {"first_wrong": 3}, False),
        (WRITE, {"text": "done"}, True),
        (WRITE, {"text": " \n"}, False),
    ],
)
def test_an_answer_answers_its_item(item: Item, answer: dict[str, Any], is_answer: bool) -> None:
    given = Decision("d", item=item.id, mode=item.mode, annotator="a", **answer)
    assert Decision.from_json(given.to_json()) == given
    if is_answer:
        check_decision(given, item)
        return
    with pytest.raises(InputError, match="expected"):
        check_decision(given, item)


def test_an_answer_to_another_item_is_refused() -> None:
    given = Decision("d", item=PICK.id, mode="pick", choice=0)
    check_decision(given, PICK)
    for other in (RANK, replace(PICK, id="0" * 64)):
        with pytest.raises(InputError, match="another item"):
            check_decision(given, other)
