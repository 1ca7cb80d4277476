"""The page while a run works: whole at any moment, never often, never a reason for the run to end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_runs import Made, make

from posttrain_plugins.errors import InputError
from posttrain_plugins.report.live import LiveReport
from posttrain_plugins.report.page import write_whole
from posttrain_plugins.report.run_page import REPORT, RunPage


class Clock:
    """Seconds that a test lets pass; each page costs `cost` of work."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now, self.cost, self.work = 0.0, cost, 0.0

    def __call__(self) -> float:
        return self.now

    def spent(self) -> float:
        self.work += self.cost / 2  # asked before and after
        return self.work


def watched(folder: Path, clock: Clock) -> tuple[LiveReport, list[str]]:
    notes: list[str] = []
    live = LiveReport(notes.append, clock, clock.spent)
    live.planned(SimpleNamespace(store=SimpleNamespace(folder=folder)))  # type: ignore[arg-type]
    return live, notes


def step(live: LiveReport) -> None:
    live.progress(None, 1, 9, "step", {})  # type: ignore[arg-type]


@pytest.mark.parametrize(("cost", "apart"), [(0.0, 10.0), (0.01, 10.0), (0.1, 20.0), (5.0, 1000.0)])
def test_pages_are_ten_seconds_or_two_hundred_times_their_cost_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: float, apart: float
) -> None:
    clock = Clock(2 * cost)  # half of it falls between the two times it is asked
    live, _ = watched(make(tmp_path / "r"), clock)
    written: list[float] = []
    monkeypatch.setattr(RunPage, "html", lambda page: written.append(clock.now) or "x")
    live.started(None, None)  # type: ignore[arg-type]
    for _ in range(50_000):
        clock.now += 0.1
        step(live)
    assert written[0] >= 10.0
    distances = [b - a for a, b in pairwise(written)]
    assert min(distances) >= apart - 0.01
    assert max(distances) <= apart + 0.2


def test_the_last_page_is_always_written(tmp_path: Path) -> None:
    live, notes = watched(make(tmp_path / "r"), Clock())
    live.started(None, None)  # type: ignore[arg-type]
    live.close()
    assert "grpo</b> is best" in (tmp_path / "r" / REPORT).read_text()
    assert notes == []


def test_a_run_that_found_all_done_leaves_the_page_of_before(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    live, _ = watched(run, Clock())
    live.close()
    assert (run / REPORT).is_file()  # there was none
    (run / REPORT).write_text("of before")
    live, _ = watched(run, Clock())
    live.close()
    assert (run / REPORT).read_text() == "of before"


@pytest.mark.parametrize("error", [InputError("a newer version"), OSError(28, "full"), KeyError("a bug of ours")])
def test_nothing_that_is_wrong_with_a_page_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(page: RunPage) -> str:
        raise error

    monkeypatch.setattr(RunPage, "html", fail)
    clock = Clock()
    live, notes = watched(make(tmp_path / "r"), clock)
    live.started(None, None)  # type: ignore[arg-type]
    for _ in range(5):
        clock.now += 100
        step(live)
    live.close()
    assert len(notes) == 1
    assert notes[0].startswith("report.html is not written: ")


def test_a_page_whose_writer_is_killed_is_whole(tmp_path: Path) -> None:
    run = make(tmp_path / "r", Made(rollouts=16, traces=0))
    page = RunPage(run)
    content = page.html()
    write_whole(run / REPORT, content)
    draw = random.Random(0)
    for _ in range(10):
        child = os.fork()
        if child == 0:
            while True:
                write_whole(run / REPORT, content + "<!-- x -->" * draw.randrange(3))
        time.sleep(draw.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = (run / REPORT).read_text()
        assert found.startswith("<!doctype html>")
        assert "</html>" in found[-60:]


def test_a_page_of_a_run_that_works_shows_where_it_is(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    keys = {
        one: json.loads((run / "latest" / one / "manifest.json").read_text())["key"] for one in ("base", "sft", "grpo")
    }
    (run / "latest/grpo").resolve().rename(run / f".grpo-{keys['grpo'][:12]}.partial")
    stages: list[dict[str, Any]] = [
        {
            "id": one,
            "use": one,
            "makes": "model",
            "key": key,
            "from": [],
            "start": None,
            "cached": one != "grpo",
            "wanted": True,
            "reasons": [],
            "folder": None,
        }
        for one, key in keys.items()
    ]
    event = {"at": 1.7e9, "pid": os.getpid(), "host": os.uname().nodename}
    planned = {
        **event,
        "event": "planned",
        "recipe": "r",
        "command": "posttrain run r --token t0kenvalue9",
        "stages": stages,
    }
    events = [
        planned,
        {"event": "started", "at": 1.7e9, "stage": "grpo", "resumed_from": None},
        {"event": "progress", "at": 1.7e9, "stage": "grpo", "done": 12, "total": 60, "unit": "step", "figures": {}},
    ]
    (run / "run.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    html = RunPage(run).html()
    assert "<b>grpo</b> is running: step 12 of 60." in html
    assert 'class="state running"' in html
    assert "thought 0" in html  # what it has sampled so far
    assert "t0kenvalue9" not in html
    failed = {
        "event": "failed",
        "at": 1.7e9,
        "stage": "grpo",
        "message": "out of <memory>",
        "hint": "less",
        "stopped": False,
    }
    ended = {"event": "ended", "at": 1.7e9, "state": "failed", "message": "x", "hint": None}
    (run / "run.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (*events, failed, ended)))
    html = RunPage(run).html()
    assert "<b>grpo</b> failed: out of &lt;memory&gt;. less" in html
