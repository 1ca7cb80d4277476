"""Who is asked what: K annotators for each item, no item in two tabs, no wall, and some questions twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.annotate.assign import LEASE_S, REPEAT_AFTER, STALE_S
from posttrain_plugins.annotate.scratch import Scratch


def test_two_tabs_and_two_annotators_get_different_items(open_table: Callable[..., Any]) -> None:
    table = open_table(4)
    first = table.next("anna", "1")
    others = [table.next("anna", "2"), table.next("ben", "3")]
    assert len({item["id"] for item in (first, *others)}) == 3


def test_a_tab_gets_its_own_item_again_after_it_was_loaded_again(open_table: Callable[..., Any]) -> None:
    table = open_table(4)
    item = table.next("anna", "1")
    assert table.next("anna", "1")["id"] == item["id"]
    assert table.next("anna", "1", held=[item["id"]])["id"] != item["id"]  # the next one, fetched ahead


@pytest.mark.parametrize("per_item", [1, 2, 3])
def test_each_item_is_asked_of_as_many_as_are_wanted(open_table: Callable[..., Any], per_item: int) -> None:
    table = open_table(5, per_item=per_item)
    decided: dict[str, set[str]] = {}
    for who in ("anna", "ben", "cleo", "dora"):
        while isinstance(item := table.next(who, who), dict):
            assert who not in decided.setdefault(item["id"], set())
            decided[item["id"]].add(who)
            table.decide(item, who, who)
    assert {len(people) for people in decided.values()} == {per_item}
    assert table.desk.about("anna")["progress"]["done"] == 5 * per_item
    assert table.next("emil", "e") == "finished"


def test_what_others_read_is_given_to_who_asks_for_it_and_to_all_when_the_lease_is_over(
    open_table: Callable[..., Any],
) -> None:
    table = open_table(1)
    item = table.next("anna", "1")
    assert table.next("ben", "2") == "leased"
    assert table.next("ben", "2", is_more=True)["id"] == item["id"]
    table.desk.leave("2", [item["id"]])
    table.clock.now += LEASE_S - 1
    table.desk.keep_open("anna", "1", [item["id"]])
    table.clock.now += LEASE_S - 1
    assert table.next("ben", "2") == "leased"
    table.clock.now += 2
    assert table.next("ben", "2")["id"] == item["id"]
    table.decide(item, "anna", "1")
    table.decide(item, "ben", "2")  # both count: the second is overlap
    assert table.desk.about("anna")["progress"]["done"] == 1
    assert len(table.ledger.effective()) == 2


def test_a_closed_tab_frees_its_items_at_once_or_after_three_silences(open_table: Callable[..., Any]) -> None:
    table = open_table(1)
    item = table.next("anna", "1")
    assert table.next("anna", "2") == "elsewhere"
    table.clock.now += STALE_S + 1
    assert table.next("anna", "2")["id"] == item["id"]
    table.desk.leave("2", [item["id"]])
    table.desk.keep_open("anna", "1", [item["id"]])
    assert table.next("anna", "3") == "elsewhere"
    table.desk.leave("1", [item["id"]])
    assert table.next("anna", "3")["id"] == item["id"]


def test_gold_questions_are_asked_of_everyone_and_count_once(open_table: Callable[..., Any]) -> None:
    table = open_table(3)
    gold = table.items[1].id
    table.desk.assignment.everyone = {gold}
    for who in ("anna", "ben"):
        asked = []
        while isinstance(item := table.next(who, who), dict):
            asked.append(item["id"])
            table.decide(item, who, who)
        assert gold in asked
        assert len(asked) == (3 if who == "anna" else 1)
    assert table.desk.about("anna")["progress"]["done"] == 3


def test_a_flag_ends_the_questions_on_an_item_and_undoing_it_brings_them_back(open_table: Callable[..., Any]) -> None:
    table = open_table(1, per_item=2)
    item = table.next("anna", "1")
    table.decide(item, "anna", "1", flag=True)
    assert table.next("ben", "2") == "finished"
    assert table.desk.about("")["progress"]["done"] == 2
    table.desk.undo("anna", {"id": "u", "session": "1", "voids": "d1"})
    assert table.desk.about("")["progress"]["done"] == 0
    assert table.next("ben", "2")["id"] == item["id"]


def test_a_share_is_asked_again_later_in_another_order_and_corrects_nothing(open_table: Callable[..., Any]) -> None:
    table = open_table(60, repeat_share=0.2)
    asked: list[str] = []
    orders: dict[str, list[list[int]]] = {}
    while isinstance(item := table.next(), dict):
        asked.append(item["id"])
        orders.setdefault(item["id"], []).append(item["shown"])
        table.decide(item)
    again = [id for id in orders if asked.count(id) == 2]
    assert 4 <= len(again) <= 20
    assert len(asked) == 60 + len(again)
    for id in again:
        first = asked.index(id)
        assert asked.index(id, first + 1) - first >= REPEAT_AFTER
    assert any(orders[id][0] != orders[id][1] for id in again)
    assert len(table.ledger.effective()) == len(asked)
    assert table.desk.about("anna")["progress"]["done"] == 60


def test_leases_and_drafts_outlive_the_process(tmp_path: Path, open_table: Callable[..., Any]) -> None:
    table = open_table(2, "pick")
    item = table.next("anna", "1")
    table.desk.write_draft("anna", item["id"], "half a \ud800 text")
    again = Scratch(tmp_path / "other.scratch")
    for lease in table.scratch.leases(table.clock.now):
        again.keep(lease)
    again.close()
    read = Scratch(tmp_path / "other.scratch")
    assert [lease.item for lease in read.leases(table.clock.now)] == [item["id"]]
    assert list(read.leases(table.clock.now + LEASE_S + 1)) == []
    assert table.scratch.draft(item["id"], "anna") == "half a ? text"
    read.close()


def test_a_broken_scratch_file_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "x.scratch").write_bytes(b"no database" * 100)
    scratch = Scratch(tmp_path / "x.scratch")
    assert list(scratch.leases(0)) == []
    scratch.close()


def test_a_lease_that_a_killed_server_left_on_a_decided_item_keeps_nobody_out(open_table: Callable[..., Any]) -> None:
    table = open_table(1, per_item=2)
    item = table.next("anna", "1")
    table.decide(item, "anna", "1")
    # written in the ledger, and killed before the lease was ended
    table.desk.assignment.lease(item["id"], "anna", "1", table.clock.now)
    assert table.next("ben", "2")["id"] == item["id"]
