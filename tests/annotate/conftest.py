"""A desk with its ledger, in this process, and the person before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.annotate.assign import Assignment
from posttrain_plugins.annotate.desk import Desk
from posttrain_plugins.annotate.scratch import Scratch
from posttrain_plugins.decisions.item import Item, items_of
from posttrain_plugins.decisions.ledger import Ledger


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def picks(count: int, of: int = 3) -> list[dict[str, Any]]:
    """Rows of `count` prompts, each with `of` completions."""
    return [{"prompt": f"question {i}", "completions": [f"answer {i}.{k}" for k in range(of)]} for i in range(count)]


class Table:
    """A desk with items, and the person before it."""

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], mode: Any, **options: Any) -> None:
        assignment = {k: options.pop(k) for k in ("per_item", "everyone", "repeat_share") if k in options}
        self.clock = Clock()
        self.path = folder / "decisions.jsonl"
        self.items: list[Item] = items_of(rows, mode)[0]
        self.ledger = Ledger.open(self.path)
        self.scratch = Scratch(folder / "decisions.jsonl.scratch")
        self.desk = Desk(self.ledger, self.scratch, Assignment(**assignment), clock=self.clock, **options)
        self.desk.offer(self.items)
        self.count = 0

    def close(self) -> None:
        self.ledger.close()
        self.scratch.close()

    def next(self, who: str = "anna", session: str = "tab", **options: Any) -> Any:
        """The next item, or the state where there is none."""
        answer = self.desk.next(who, session, **options)
        return answer["item"] if answer["state"] == "item" else answer["state"]

    def decide(self, item: Mapping[str, Any], who: str = "anna", session: str = "tab", **values: Any) -> dict[str, Any]:
        self.count += 1
        given = {"id": f"d{self.count}", "item": item["id"], "mode": item["mode"], "shown": item["shown"]}
        if not values and item["mode"] == "pick":
            values = {"choice": 0}
        return self.desk.decide(who, {**given, "session": session, **values})


@pytest.fixture
def open_table(tmp_path: Path) -> Iterator[Callable[..., Table]]:
    opened: list[Table] = []

    def open_one(rows: Sequence[Mapping[str, Any]] | int = 3, mode: str = "pick", **options: Any) -> Table:
        opened.append(Table(tmp_path, picks(rows) if isinstance(rows, int) else rows, mode, **options))
        return opened[-1]

    yield open_one
    for table in opened:
        table.close()
