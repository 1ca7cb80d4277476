"""Answers of a model made ahead: so many and no more, the same after a restart, and told where the model fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.annotate.feed import ModelFeed
from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.types import Completion, Generate, SamplingParams, Usage


class Scripted:
    """Answers at once, and counts what it was asked."""

    identity = "scripted"
    capabilities = Capabilities()

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked = 0
        self.fails_at = fails_at

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, of_request in enumerate(seeds):
            self.asked += 1
            if self.fails_at is not None and self.asked > self.fails_at:
                raise RuntimeError("out of memory")
            for j, seed in enumerate(of_request):
                yield i, j, Completion(f"answer {seed % 1000}", "stop", usage=Usage(1, 1))


def feed(table: Any, backend: Any, log: RequestLog, said: list[str], mode: Any = "pick", n: int = 3) -> Any:
    rows = [{"prompt": f"q{i}"} for i in range(20)]
    params = SamplingParams(max_tokens=8)
    return ModelFeed(table.desk, rows, mode, backend, n, params, 4, log, tell=said.append).start()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_it_stays_ahead_by_so_many_and_no_more(open_table: Callable[..., Any], tmp_path: Path) -> None:
    table, backend, said = open_table([], "pick"), Scripted(), []
    with RequestLog(tmp_path / "log.jsonl") as log:
        thread = feed(table, backend, log, said)
        wait_for(lambda: len(table.desk.assignment.ids) >= 4)
        time.sleep(0.3)
        assert backend.asked <= 6
        assert table.desk.about("anna")["progress"]["needed"] == 20
        decided = 0
        while decided < 20:
            item = table.next()
            if isinstance(item, dict):
                table.decide(item, choice=item["shown"][0])
                decided += 1
            else:
                assert item == "waiting"
                time.sleep(0.02)
        thread.join(timeout=20)
        assert table.next() == "finished"
    assert backend.asked == 20
    table.close()
    again, second = Scripted(), open_table([], "pick")
    with RequestLog(tmp_path / "log.jsonl") as log:  # the same questions, and nothing is asked twice
        feed(second, again, log, said).join(timeout=20)
    assert second.desk.assignment.ids == table.desk.assignment.ids
    assert again.asked == 0
    assert second.next() == "finished"


def test_a_model_that_fails_leaves_what_there_is_and_is_told(open_table: Callable[..., Any], tmp_path: Path) -> None:
    table, said = open_table([], "pick"), []
    with RequestLog(None) as log:
        feed(table, Scripted(fails_at=2), log, said).join(timeout=20)
    assert any("out of memory" in line for line in said), said
    assert "out of memory" in table.desk.about("anna")["progress"]["trouble"]
    assert table.next() != "waiting"


@pytest.mark.parametrize(("mode", "n", "items"), [("accept", 2, 40), ("demonstration", 1, 20)])
def test_each_mode_gets_its_items(open_table: Callable[..., Any], mode: str, n: int, items: int) -> None:
    table, said = open_table([], mode), []
    table.desk.wait_for_demand = lambda ahead: True
    with RequestLog(None) as log:
        feed(table, Scripted(), log, said, mode, n).join(timeout=20)
    assert len(table.desk.assignment.ids) <= items
    assert len(table.desk.assignment.ids) >= items - 4
    assert table.desk.is_fed
