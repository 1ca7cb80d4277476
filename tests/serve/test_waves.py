"""Requests of all clients share waves: together, apart where one fails, and none for a client that has gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scripted_server import PATIENCE_S, USER, LocalServer, ScriptedBackend, brevity, wait_for

from posttrain_plugins.errors import Interrupted
from posttrain_plugins.serve.model_thread import ModelThread
from posttrain_plugins.serve.queued import QueuedBackend, queued
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Generate, ResolvedReward, Usage


def num_waiting(here: LocalServer) -> int:
    return len(here.request_gate.service.model_thread._jobs)


def test_requests_that_wait_together_are_drawn_in_one_wave(open_server: Callable[..., LocalServer]) -> None:
    """Of eight clients the first is drawn alone; the others come meanwhile and share the next wave."""
    here = open_server()
    here.backend.gate = threading.Event()
    kinds = ["m", "m@self_consistency(n=3)", "m@greedy", "m@best_of_n(n=2, scorer=short)"]
    here.request_gate.service.strategies.scorers["short"] = ResolvedReward("short", brevity)
    with ThreadPoolExecutor(8) as clients:
        first = clients.submit(here.chat)
        wait_for(lambda: len(here.backend.waves) == 1)
        others = [clients.submit(here.chat, kinds[i % 4]) for i in range(7)]
        wait_for(lambda: num_waiting(here) == 7)
        here.backend.gate.set()
        replies = [future.result(PATIENCE_S) for future in (first, *others)]
    assert [len(wave) for wave in here.backend.waves] == [1, 7]
    assert sorted(request.n for request in here.backend.waves[1]) == [1, 1, 1, 1, 2, 3, 3]
    assert all(reply.choices[0].message.content for reply in replies)
    assert here.request_gate.service.model_thread.waves == 2


def test_a_long_search_does_not_hold_up_a_short_question(
    open_server: Callable[..., LocalServer], tmp_path: Path
) -> None:
    """The search goes on until the questions are answered, and at least one of them shares a wave with it."""
    (tmp_path / "endless.py").write_text(ENDLESS.replace("END", repr(str(tmp_path / "end"))))
    here = open_server(named={"long": f"{tmp_path}/endless.py:endless"})

    def is_shared() -> bool:
        here.chat()
        return max(map(len, here.backend.waves)) == 2

    with ThreadPoolExecutor(1) as clients:
        long = clients.submit(here.chat, "m@long")
        wait_for(lambda: len(here.backend.waves) > 2)
        wait_for(is_shared)
        assert not long.done()
        (tmp_path / "end").touch()
        long.result(PATIENCE_S)
    assert max(map(len, here.backend.waves)) == 2


ENDLESS = """
from pathlib import Path
from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.types import Generate

def endless(problem):
    while True:
        completions = yield Generate(problem.prompt, params=problem.params)
        if Path(END).exists():
            return choose(candidates(completions), 0)
"""


def test_a_request_that_cannot_be_answered_fails_alone(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
    here.backend.gate = threading.Event()
    bad = [{"role": "user", "content": "boom"}]
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(here.post)
        wait_for(lambda: len(here.backend.waves) == 1)
        mixed = [clients.submit(here.post, messages=bad if i == 1 else USER) for i in range(3)]
        wait_for(lambda: num_waiting(here) == 3)
        here.backend.gate.set()
        codes = [future.result(PATIENCE_S).status_code for future in (first, *mixed)]
    assert codes == [200, 200, 500, 200]


def test_clients_that_wait_for_a_scorer_share_a_call() -> None:
    worker, calls = ModelThread(), []

    def counted(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return [float(to_text(c)) for c in completions]

    reward = queued(worker, ResolvedReward("r", counted))
    gate = threading.Event()
    with ThreadPoolExecutor(5) as clients:
        clients.submit(worker.call, gate.wait)
        wait_for(lambda: not worker._jobs)
        asked = [
            clients.submit(reward.func, prompts=["p"] * n, completions=[str(n)] * n, extra=["e"] * n) for n in (1, 2, 3)
        ]
        chat = clients.submit(
            reward.func, prompts=[USER], completions=[[{"role": "assistant", "content": "9"}]], extra=[1]
        )
        wait_for(lambda: len(worker._jobs) == 4)
        gate.set()
        assert [future.result(PATIENCE_S) for future in (*asked, chat)] == [[1.0], [2.0] * 2, [3.0] * 3, [9.0]]
    assert sorted(calls) == [1, 6]  # the conversational one is a call of its own
    worker.close(PATIENCE_S)


def test_a_scorer_that_fails_for_one_fails_for_that_one_alone() -> None:
    worker = ModelThread()

    def picky(completions: list[str], **columns: Any) -> list[float]:
        return [1.0 / len(completion) for completion in completions]

    reward = queued(worker, ResolvedReward("r", picky))
    gate = threading.Event()
    with ThreadPoolExecutor(3) as clients:
        clients.submit(worker.call, gate.wait)
        wait_for(lambda: not worker._jobs)
        good, bad = (clients.submit(reward.func, prompts=["p"], completions=[text]) for text in ("ab", ""))
        wait_for(lambda: len(worker._jobs) == 2)
        gate.set()
        assert good.result(PATIENCE_S) == [0.5]
        with pytest.raises(ZeroDivisionError):
            bad.result(PATIENCE_S)
    worker.close(PATIENCE_S)


@dataclass
class Counting:
    """A judge that counts what it has spent."""

    spent: Usage = field(default_factory=Usage)

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        self.spent += Usage(10 * len(completions), calls=1)
        return [1.0 for _ in completions]


def test_each_client_pays_for_its_own_judge(open_server: Callable[..., LocalServer]) -> None:
    here = open_server(scorers={"judge": Counting()})
    for n in (2, 3):
        reply = here.chat(f"m@best_of_n(n={n}, scorer=judge)", seed=n)
        distinct = {
            c["text"] for c in here.chat(n=n, seed=n, extra_body={"trace": True}).posttrain["trace"][0]["completions"]
        }
        assert reply.usage.roles["judge"]["prompt_tokens"] == 10 * len(distinct)


def test_a_client_that_has_gone_is_not_waited_for() -> None:
    worker, backend = ModelThread(), ScriptedBackend()
    backend.gate = threading.Event()
    gone = threading.Event()
    mine = QueuedBackend(worker, backend, gone.is_set)
    with ThreadPoolExecutor(2) as clients:
        drawn = clients.submit(lambda: list(mine.generate([Generate("a", n=1000)], [range(1000)])))
        wait_for(lambda: len(backend.waves) == 1)
        gone.set()
        with pytest.raises(Interrupted):
            drawn.result(PATIENCE_S)
        backend.gate.set()
        stays = QueuedBackend(worker, backend, lambda: False)
        assert len(list(stays.generate([Generate("b")], [[1]]))) == 1
    assert worker.completions < 10  # of the thousand, one or two
    worker.close(PATIENCE_S)


def test_while_the_server_ends_nobody_comes_in(open_server: Callable[..., LocalServer]) -> None:
    here = open_server()
    here.backend.gate = threading.Event()
    with ThreadPoolExecutor(2) as clients:
        inside = clients.submit(here.post)
        wait_for(lambda: len(here.backend.waves) == 1)
        here.request_gate.is_closing = True
        assert here.post().status_code == 503
        assert here.http.get("/health").status_code == 503
        here.request_gate.cancel_all()
        late = inside.result(PATIENCE_S)
        here.backend.gate.set()
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "stopped"
    assert here.request_gate.in_flight == set()
