"""Decisions become rows that TRL's trainers read as they are: each mode and form, ties, flags, several annotators."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain_plugins.decisions.counted import counted
from posttrain_plugins.decisions.formats import COLUMNS, FORMS, Form, Resolve, Rows, rows_of
from posttrain_plugins.decisions.item import Decision, Item, Mode, items_of
from posttrain_plugins.errors import InputError

CHAT = [{"role": "user", "content": "2+2?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def item_of(mode: Mode, prompt: Any = "p") -> Item:
    texts: dict[Mode, dict[str, Any]] = {
        "demonstration": {"completion": "draft"},
        "pick": {"completions": ["a", "b", "c"]},
        "rank": {"completions": ["a", "b", "c"]},
        "accept": {"completion": "a"},
        "first_wrong": {"completion": "s1\n\ns2\n\ns3"},
    }
    return items_of([{"prompt": prompt, "solution": "4", **texts[mode]}], mode)[0][0]


def made(mode: Mode, *answers: dict[str, Any], form: Form | None = None, resolve: Resolve = "majority") -> Rows:
    """The rows of one item that so many annotators answered."""
    item = item_of(mode)
    decisions = [Decision(f"d{i}", item.id, mode, f"a{i}", **answer) for i, answer in enumerate(answers)]
    return rows_of([item], {item.id: decisions}, form, resolve)


def short(rows: Rows) -> list[Any]:
    """The columns that a decision made, without prompt and what is handed through."""
    assert all(row["prompt"] == "p" and row["solution"] == "4" for row in rows.rows)
    return [tuple(v for k, v in row.items() if k not in ("prompt", "solution")) for row in rows.rows]


STEPS = ["s1\n\n", "s2\n\n", "s3"]
BAD = {"none_good": True}


def order(*groups: str) -> dict[str, Any]:
    return {"order": tuple(tuple("abc".index(text) for text in group) for group in groups)}


def pick(text: str) -> dict[str, Any]:
    return {"choice": "abc".index(text)}


@pytest.mark.parametrize(
    ("mode", "form", "answer", "expected"),
    [
        ("demonstration", None, {"text": "mine"}, [("mine",)]),
        ("demonstration", "pairs", {"text": "mine"}, [("mine", "draft")]),
        ("demonstration", "pairs", {"text": "draft "}, []),  # nothing was changed: no preference
        ("pick", None, pick("b"), [("b", "a"), ("b", "c")]),
        ("pick", None, BAD, []),
        ("pick", "ranked", pick("b"), [(["b", "a", "c"], [2.0, 0.0, 0.0])]),
        ("pick", "ranked", BAD, []),
        ("pick", "labelled", pick("b"), [("a", False), ("b", True), ("c", False)]),
        ("pick", "labelled", BAD, [("a", False), ("b", False), ("c", False)]),
        ("pick", "demonstrations", pick("b"), [("b",)]),
        ("pick", "demonstrations", BAD, []),
        ("rank", None, order("c", "a", "b"), [(["c", "a", "b"], [2.0, 1.0, 0.0])]),
        ("rank", None, order("c", "ab"), [(["c", "a", "b"], [2.0, 0.0, 0.0])]),
        ("rank", None, order("ac", "b"), [(["a", "c", "b"], [1.0, 1.0, 0.0])]),
        ("rank", None, order("abc"), []),  # equals only
        ("rank", "pairs", order("ac", "b"), [("a", "b"), ("c", "b")]),  # a tie makes no pair
        ("rank", "pairs", order("abc"), []),
        ("rank", "pairs", BAD, []),
        ("rank", "pairs", order("a", "b", "c") | BAD, []),
        ("rank", "labelled", order("ac", "b"), [("a", True), ("b", False), ("c", True)]),
        ("rank", "labelled", order("a", "b", "c") | BAD, [("a", False), ("b", False), ("c", False)]),
        ("rank", "demonstrations", order("c", "ab"), [("c",)]),
        ("accept", None, {"verdict": True}, [("a", True)]),
        ("accept", None, {"verdict": False}, [("a", False)]),
        ("accept", "demonstrations", {"verdict": True}, [("a",)]),
        ("accept", "demonstrations", {"verdict": False}, []),
        ("first_wrong", None, {"first_wrong": 0}, [(STEPS[:1], [False])]),
        ("first_wrong", None, {"first_wrong": 1}, [(STEPS[:2], [True, False])]),
        ("first_wrong", None, {"first_wrong": 3}, [(STEPS, [True, True, True])]),
    ],
)
def test_one_decision(mode: Mode, form: Form | None, answer: dict[str, Any], expected: list[Any]) -> None:
    found = made(mode, answer, form=form)
    assert short(found) == expected
    assert all(set(COLUMNS[form or FORMS[mode][0]]) == set(row) - {"solution"} for row in found.rows)
    assert (found.flagged, found.none_good) == (0, int("none_good" in answer))
    assert found.undecided == (0 if expected or "none_good" in answer else 1)


@pytest.mark.parametrize("mode", FORMS)
def test_a_flag_takes_the_item_out_and_is_counted(mode: Mode) -> None:
    answers: dict[Mode, dict[str, Any]] = {
        "demonstration": {"text": "mine"},
        "pick": pick("a"),
        "rank": order("a", "b", "c"),
        "accept": {"verdict": True},
        "first_wrong": {"first_wrong": 1},
    }
    for form in FORMS[mode]:
        assert made(mode, answers[mode], form=form).rows
        assert made(mode, answers[mode], {"flag": True}, form=form) == Rows([], flagged=1)
        assert made(mode, answers[mode] | {"flag": True}, form=form) == Rows([], flagged=1)


@pytest.mark.parametrize(
    ("mode", "form", "answers", "by_resolve"),
    [
        (
            "pick",
            "pairs",
            [pick("a"), pick("a"), pick("b")],
            {
                "majority": [("a", "b"), ("a", "c")],
                "unanimous": [],
                "all": [("a", "b"), ("a", "c"), ("a", "b"), ("a", "c"), ("b", "a"), ("b", "c")],
            },
        ),
        ("pick", "pairs", [pick("a"), pick("b")], {"majority": [], "unanimous": []}),
        ("pick", "pairs", [pick("a"), BAD, BAD], {"majority": [], "all": [("a", "b"), ("a", "c")]}),
        (
            "pick",
            "labelled",
            [pick("a"), BAD],  # a is good to one of two: nobody knows; b and c are good to none
            {"majority": [("b", False), ("c", False)], "unanimous": [("b", False), ("c", False)]},
        ),
        (
            "rank",
            "ranked",
            [order("a", "b", "c"), order("a", "c", "b"), order("b", "a", "c")],
            {"majority": [(["a", "b", "c"], [2.0, 1.0, 0.0])], "unanimous": [(["a", "b", "c"], [1.0, 0.0, 0.0])]},
        ),
        # Condorcet's circle: each beats another one by two voices of three
        (
            "rank",
            "ranked",
            [order("a", "b", "c"), order("b", "c", "a"), order("c", "a", "b")],
            {"majority": [], "unanimous": []},
        ),
        ("rank", "pairs", [order("a", "bc"), order("ab", "c")], {"majority": [("a", "c")], "unanimous": [("a", "c")]}),
        (
            "accept",
            "labelled",
            [{"verdict": True}, {"verdict": True}, {"verdict": False}],
            {"majority": [("a", True)], "unanimous": [], "all": [("a", True), ("a", True), ("a", False)]},
        ),
        ("accept", "labelled", [{"verdict": True}, {"verdict": False}], {"majority": [], "unanimous": []}),
        (
            "first_wrong",
            "steps",
            [{"first_wrong": 1}, {"first_wrong": 1}, {"first_wrong": 3}],
            {"majority": [(STEPS[:2], [True, False])], "unanimous": []},
        ),
        (
            "demonstration",
            "demonstrations",
            [{"text": "x"}, {"text": "y"}],
            {name: [("x",), ("y",)] for name in ("majority", "unanimous", "all")},
        ),
    ],
)
def test_several_annotators(mode: Mode, form: Form, answers: list, by_resolve: dict[Resolve, list[Any]]) -> None:
    for resolve, expected in by_resolve.items():
        assert short(made(mode, *answers, form=form, resolve=resolve)) == expected, resolve


def test_rows_are_in_the_format_of_their_prompt() -> None:
    item = item_of("pick", CHAT)
    answers = {item.id: [Decision("d", item.id, "pick", "a", choice=0)]}
    pair = rows_of([item], answers).rows[0]
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (CHAT, said("a"), said("b"))
    assert rows_of([item], answers, "ranked").rows[0]["completions"] == [said("a"), said("b"), said("c")]
    written = item_of("demonstration", CHAT)
    answers = {written.id: [Decision("d", written.id, "demonstration", "a", text="mine")]}
    assert rows_of([written], answers).rows[0]["completion"] == said("mine")


def test_messages_stay_as_they_are() -> None:
    rows = [{"prompt": CHAT, "completions": [said("a"), said("b")]}]
    item = items_of(rows, "pick")[0][0]
    pair = rows_of([item], {item.id: [Decision("d", item.id, "pick", "a", choice=1)]}).rows[0]
    assert (pair["chosen"], pair["rejected"]) == (said("b"), said("a"))


def test_a_form_that_a_mode_does_not_make_is_refused() -> None:
    with pytest.raises(InputError, match="'first_wrong' makes no pairs"):
        made("first_wrong", {"first_wrong": 1}, form="pairs")


# --- which decisions count --------------------------------------------------------------------------------------------


def by(annotator: str, item: str, number: int = 0, **answer: Any) -> Decision:
    return Decision(f"{annotator}{item}{number}", item, "accept", annotator, **(answer or {"verdict": True}))


def test_as_many_annotators_as_asked_decide_an_item() -> None:
    ledger = [by("ann", "x"), by("ann", "x", 1, verdict=False), by("bob", "y"), by("bob", "x"), by("cy", "x")]
    one = counted(["y", "x", "z"], ledger)
    assert [(id, [d.annotator for d in of]) for id, of in one.answers.items()] == [("y", ["bob"]), ("x", ["ann"])]
    assert (str(one), one.is_enough) == ("2 of 3", False)
    two = counted(["y", "x", "z"], ledger, annotators_per_item=2, needed=1)
    assert {id: [d.annotator for d in of] for id, of in two.answers.items()} == {"x": ["ann", "bob"]}
    assert two.is_enough


def test_a_further_click_changes_nothing_that_is_used() -> None:
    ids = ["x", "y", "z"]
    ledger = [by("ann", "z"), by("ann", "x")]
    enough = counted(ids, ledger, needed=2)
    assert enough.is_enough
    for more in ([by("ann", "y")], [by("bob", "x")], [by("ann", "x", 1, verdict=False)], [by("ann", "other")]):
        later = counted(ids, ledger + more, needed=2)
        assert later.sha256() == enough.sha256()
    assert counted(ids, [*ledger, by("ann", "y")], needed=2).unused == 1
    changed = counted(
        ids, [by("ann", "z"), by("ann", "x", 2, verdict=False)], needed=2
    )  # x was taken back and corrected
    assert changed.is_enough
    assert changed.sha256() != enough.sha256()


def test_the_hash_is_of_what_was_answered_by_whom() -> None:
    plain = counted(["x"], [by("ann", "x", 0, verdict=True, at=1.0, seconds=3.0)])
    assert plain.sha256() == counted(["x"], [by("ann", "x", 9, verdict=True, at=2.0)]).sha256()
    others = [by("bob", "x"), by("ann", "x", verdict=False), by("ann", "x", verdict=True, flag=True)]
    assert len({plain.sha256(), *(counted(["x"], [one]).sha256() for one in others)}) == 4
