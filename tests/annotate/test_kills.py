"""Three annotators with two tabs each decide through HTTP while the server is killed: nothing lost, nothing twice."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

ITEMS, PER_ITEM, KILLS = 250, 2, 10


class Tab(threading.Thread):
    """Asks and decides until nothing is left; what gets no answer is sent again with its id."""

    def __init__(self, port: int, who: str, number: int) -> None:
        super().__init__(daemon=True)
        self.who, self.session = who, f"{who}-{number}"
        self.random = random.Random(self.session)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/", timeout=20, trust_env=False)
        self.acknowledged: list[str] = []
        self.resent = 0

    def ask(self, path: str, **values: Any) -> dict[str, Any]:
        while True:
            try:
                answer = self.client.post(path, json={"annotator": self.who, "session": self.session, **values})
            except httpx.TransportError:
                self.resent += path == "decide"
                time.sleep(0.05)
                continue
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

    def run(self) -> None:
        while (found := self.ask("next"))["state"] != "finished":
            if found["state"] != "item":
                time.sleep(0.1)
                continue
            item = found["item"]
            id = str(uuid.UUID(int=self.random.getrandbits(128)))
            choice = self.random.randrange(3)
            answer = self.ask(
                "decide", id=id, item=item["id"], mode="pick", shown=item["shown"], choice=choice, seconds=0.1
            )
            assert answer["id"] == id
            self.acknowledged.append(id)


@pytest.mark.slow
def test_ten_kills_lose_nothing_and_double_nothing(
    tmp_path: Path, start_annotate: Callable[..., Any], write_rows: Callable[..., Path]
) -> None:
    rows = [{"prompt": f"q{i}", "completions": [f"{i}.{k}" for k in range(3)]} for i in range(ITEMS)]
    write_rows(rows, "rows.jsonl")
    options = ("rows.jsonl", "--per-item", str(PER_ITEM))
    server = start_annotate(*options)
    tabs = [Tab(server.port, who, number) for who in ("anna", "ben", "cleo") for number in (1, 2)]
    for tab in tabs:
        tab.start()
    chance = random.Random(0)
    ledger = tmp_path / "rows.decisions.jsonl"
    for number in range(KILLS):
        # at random moments of the work, not of the clock: each start leaves time for some dozens of decisions
        goal = len(ledger.read_bytes().splitlines()) + chance.randrange(5, 2 * ITEMS * PER_ITEM // (3 * KILLS))
        while len(ledger.read_bytes().splitlines()) < goal and any(tab.is_alive() for tab in tabs):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.01)
        assert any(tab.is_alive() for tab in tabs), f"all was decided before kill {number + 1}"
        server.kill()
        server = start_annotate(*options, "--port", str(server.port))
    for tab in tabs:
        tab.join(timeout=120)
        assert not tab.is_alive()
        tab.client.close()
    said = server.stop()

    lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    acknowledged = [id for tab in tabs for id in tab.acknowledged]
    written = Counter(line["id"] for line in lines)
    assert len(lines) == ITEMS * PER_ITEM
    assert set(acknowledged) == set(written)  # none lost
    assert set(written.values()) == {1}  # none twice
    assert len(acknowledged) == len(set(acknowledged))
    assert set(Counter(line["item"] for line in lines).values()) == {PER_ITEM}  # and none more than asked for
    assert set(Counter((line["item"], line["annotator"]) for line in lines).values()) == {1}
    assert sum(tab.resent for tab in tabs) >= KILLS
    assert f"{ITEMS} of {ITEMS} items decided, {ITEMS * PER_ITEM} decisions" in said
    assert f"agreement on {ITEMS} shared items" in said
