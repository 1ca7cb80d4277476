"""Decisions taken in: written once, corrected and undone by records, refused where they mean nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from posttrain_plugins.annotate.desk import Refusal
from posttrain_plugins.annotate.shown import order_of
from posttrain_plugins.decisions.bias import position_preference
from posttrain_plugins.decisions.formats import rows_of
from posttrain_plugins.decisions.ledger import read_all, read_ledger

STEPS = [{"prompt": "p", "completion": "one\n\ntwo\n\nthree"}]
ANSWERS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "pick": ([{"prompt": "p", "completions": ["a", "b"]}], {"choice": 1}, {"choice": 2}),
    "rank": ([{"prompt": "p", "completions": ["a", "b", "c"]}], {"order": [[2], [0, 1]]}, {"order": [[2], [0]]}),
    "accept": ([{"prompt": "p", "completion": "a"}], {"verdict": False}, {"choice": 0}),
    "first_wrong": (STEPS, {"first_wrong": 3}, {"first_wrong": 4}),
    "demonstration": ([{"prompt": "p"}], {"text": "done"}, {"text": "  "}),
}


@pytest.mark.parametrize("mode", ANSWERS)
def test_each_mode_writes_what_was_answered_and_refuses_what_is_no_answer(
    open_table: Callable[..., Any], mode: str
) -> None:
    rows, answer, wrong = ANSWERS[mode]
    table = open_table(rows, mode, guideline_sha="")
    item = table.next()
    with pytest.raises(Refusal) as refused:
        table.decide(item, **wrong)
    assert (refused.value.code, refused.value.status) == ("no_decision", 400)
    assert read_all(table.path) == []
    table.decide(item, **answer, note="n", seconds=1.5)
    (line,) = read_ledger(table.path)
    ((name, value),) = answer.items()
    assert getattr(line, name) == (tuple(map(tuple, value)) if name == "order" else value)
    about = (line.mode, line.annotator, line.note, line.seconds, line.at, line.shown)
    assert about == (mode, "anna", "n", 1.5, table.clock.now, tuple(item["shown"]))
    assert table.next() == "finished"


@pytest.mark.parametrize("mode", ANSWERS)
def test_none_is_good_and_a_flag_are_answers_in_every_mode(open_table: Callable[..., Any], mode: str) -> None:
    extra = {"accept": {"verdict": False}, "first_wrong": {"first_wrong": 0}}.get(mode, {})
    for answer in ({"none_good": True, **extra}, {"flag": True}):
        table = open_table(ANSWERS[mode][0], mode)
        table.decide(item := table.next(), **answer)
        decisions = {item["id"]: [read_ledger(table.path)[-1]]}
        rows = rows_of(table.items, decisions).rows
        assert all(row.get("label", False) is False and "chosen" not in row for row in rows)
        assert rows == [] or mode in ("accept", "first_wrong")
        table.close()
        table.path.unlink()


def test_what_is_sent_again_is_written_once(open_table: Callable[..., Any]) -> None:
    table = open_table(2)
    item = table.next()
    answers = [table.desk.decide("anna", {"id": "d", "item": item["id"], "mode": "pick", "choice": c}) for c in (0, 1)]
    assert answers[0] == answers[1]
    assert [line.choice for line in read_all(table.path)] == [0]


def test_a_correction_is_one_more_line_and_the_later_word_holds(open_table: Callable[..., Any]) -> None:
    table = open_table(2)
    item = table.next()
    table.decide(item, choice=0)
    back = table.desk.look_back("anna")["item"]
    assert (back["id"], back["given"]["choice"], back["shown"]) == (item["id"], 0, item["shown"])
    table.decide(back, choice=2, voids=back["given"]["id"])
    assert [line.choice for line in read_all(table.path)] == [0, 2]
    assert [line.choice for line in read_ledger(table.path)] == [2]
    # from a tab that did not know: the same
    table.decide(item, choice=1, session="other")
    assert [line.choice for line in read_ledger(table.path)] == [1]
    # a correction undone leaves what it corrected
    table.desk.undo("anna", {"id": "u", "session": "tab", "voids": "d3"})
    assert [line.choice for line in read_ledger(table.path)] == [2]
    assert [one.choice for one in table.desk.assignment.answers[item["id"]]] == [2]
    assert table.desk.about("anna")["progress"]["done"] == 1


def test_undo_gives_the_item_back(open_table: Callable[..., Any]) -> None:
    table = open_table(3)
    first = table.next()
    table.decide(first)
    second = table.next()
    undone = table.desk.undo("anna", {"id": "u", "session": "tab", "voids": "d1"})
    assert undone["item"]["id"] == first["id"]
    assert undone["progress"]["done"] == 0
    assert read_ledger(table.path) == []
    again = table.desk.undo("anna", {"id": "u", "session": "tab", "voids": "d1"})  # the answer was lost
    assert again["item"]["id"] == first["id"]
    assert len(read_all(table.path)) == 2
    table.decide(undone["item"])
    assert table.next()["id"] == second["id"]


@pytest.mark.parametrize(
    ("who", "values", "code"),
    [
        ("ben", {"id": "u", "session": "s", "voids": "d1"}, "not_yours"),
        ("anna", {"id": "u", "session": "s", "voids": "nothing"}, "unknown_decision"),
        ("anna", {"id": "u", "session": "s"}, "unknown_decision"),
    ],
)
def test_only_an_own_decision_can_be_taken_back(
    open_table: Callable[..., Any], who: str, values: dict[str, Any], code: str
) -> None:
    table = open_table(2)
    table.decide(table.next())
    with pytest.raises(Refusal) as refused:
        table.desk.undo(who, values)
    assert refused.value.code == code
    assert len(read_all(table.path)) == 1


def test_looking_back_goes_through_all_of_ones_own(open_table: Callable[..., Any]) -> None:
    table = open_table(4)
    for who in ("anna", "ben", "anna"):
        table.decide(table.next(who, who), who, who)
    newest = table.desk.look_back("anna")["item"]["given"]["id"]
    older = table.desk.look_back("anna", newest)["item"]["given"]["id"]
    assert (older, newest) == ("d1", "d3")
    assert table.desk.look_back("anna", older)["item"] is None
    assert table.desk.look_back("anna", older, 1)["item"]["given"]["id"] == newest
    assert table.desk.look_back("anna", newest, 1)["item"] is None


def test_another_guideline_than_the_one_shown_is_told(open_table: Callable[..., Any]) -> None:
    table = open_table(1, guideline_sha="new")
    item = table.next()
    with pytest.raises(Refusal) as refused:
        table.decide(item, choice=0, guideline_sha="old")
    assert refused.value.code == "guideline_changed"
    table.decide(item, choice=0, guideline_sha="new")
    assert [line.guideline_sha for line in read_ledger(table.path)] == ["new"]


def test_a_decision_on_an_item_that_is_not_loaded_yet_is_sent_again_later(open_table: Callable[..., Any]) -> None:
    table = open_table(1)
    stranger = {"id": "0" * 64, "mode": "pick", "shown": []}
    for is_fed, code, status in ((False, "not_ready", 503), (True, "unknown_item", 409)):
        table.desk.expect(1, is_fed)
        with pytest.raises(Refusal) as refused:
            table.decide(stranger, choice=0)
        assert (refused.value.code, refused.value.status) == (code, status)


def test_enough_is_enough_until_more_is_asked_for(open_table: Callable[..., Any]) -> None:
    table = open_table(3, needed=2)
    for _ in range(2):
        table.decide(table.next())
    assert table.next() == "enough"
    assert table.desk.about("anna")["progress"] | {"last": None} == {
        "done": 2, "needed": 2, "own": 2, "last": None, "trouble": None,
    }  # fmt: skip
    assert isinstance(table.next(is_more=True), dict)


def test_a_draft_comes_back_and_goes_with_the_decision(open_table: Callable[..., Any]) -> None:
    table = open_table([{"prompt": "p", "completion": "begun"}], "demonstration")
    item = table.next()
    assert (item["text"], item["is_begun"]) == ("begun", True)
    table.desk.write_draft("anna", item["id"], "begun, and")
    assert table.next(session="tab")["text"] == "begun, and"
    assert table.desk.next("ben", "b", is_more=True)["item"]["text"] == "begun"
    table.decide(item, text="begun, and ended")
    assert table.scratch.draft(item["id"], "anna") is None
    assert table.desk.look_back("anna")["item"]["text"] == "begun, and ended"


def test_the_order_is_shuffled_by_seed_item_and_annotator_and_is_even(open_table: Callable[..., Any]) -> None:
    table = open_table(600)
    first = Counter(order_of(item, "anna", 0)[0] for item in table.items)
    assert all(abs(count - 200) < 60 for count in first.values())  # 3 values, 5 standard deviations
    some = table.items[:50]
    assert [order_of(item, "anna", 0) for item in some] == [order_of(item, "anna", 0) for item in some]
    for who, seed, times in (("ben", 0, 0), ("anna", 1, 0), ("anna", 0, 1)):
        assert [order_of(item, who, seed, times) for item in some] != [order_of(item, "anna", 0) for item in some]


@pytest.mark.parametrize("is_lazy", [True, False])
def test_who_always_takes_the_left_one_is_exposed_and_teaches_nothing(
    open_table: Callable[..., Any], is_lazy: bool
) -> None:
    table = open_table([{"prompt": f"q{i}", "completions": [f"{i}a", f"{i}b"]} for i in range(300)], seed=1)
    while isinstance(item := table.next(), dict):
        table.decide(item, choice=item["shown"][0] if is_lazy else 0)
    decisions = read_ledger(table.path)
    found = position_preference(decisions)
    assert found is not None
    if is_lazy:
        assert found.mean >= 0.95
        assert found.low > 0.9
        pairs = rows_of(table.items, {one.item: [one] for one in decisions}).rows
        assert abs(sum(row["chosen"].endswith("a") for row in pairs) / 300 - 0.5) <= 0.07
    else:
        assert found.low <= 0.5 <= found.high
