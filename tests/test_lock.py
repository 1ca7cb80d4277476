"""One process makes a stage, also where `flock` reaches no other machine: two machines are two processes here.

Each process below says that it is a machine of its own, and its `flock` always succeeds, as over NFS without locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain_plugins.errors import StageFailed
from posttrain_plugins.recipe.plan import lock
from posttrain_plugins.recipe.plan.store import Store

KEY = "0123456789abcdef" * 4
MACHINE = """
import fcntl, sys
from pathlib import Path
from posttrain_plugins.errors import StageFailed
from posttrain_plugins.recipe.plan import lock
from posttrain_plugins.recipe.plan.store import Store

root, name, beat, stale = sys.argv[1:]
lock.BEAT_S, lock.STALE_S, lock.LOOK_S = float(beat), float(stale), 0.02
lock._machine = lambda: name
lock.socket.gethostname = lambda: name
fcntl.flock = lambda handle, how: None
tell = lambda *words: print(*words, flush=True)
store = Store(Path(root), "recipe")
try:
    with store.locked("sft", KEY, lambda message: tell("note", message)) as partial:
        tell("held")
        for line in sys.stdin:
            store.check_held("sft", KEY)
            tell("still held")
            if line == "publish\\n":
                (partial / "by").write_text(name)
                store.publish("sft", KEY, {"key": KEY, "metrics": {}, "details": {}})
                tell("published")
except StageFailed as error:
    tell("refused", error.message)
""".replace("KEY", repr(KEY))


class Machine:
    """A process that holds the stage, or is refused; it tells line by line."""

    def __init__(self, root: Path, name: str, beat_s: float = 0.1, stale_s: float = 3.0) -> None:
        command = [sys.executable, "-c", MACHINE, str(root), name, str(beat_s), str(stale_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hears(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def asked(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.hears()

    def ends(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.communicate(timeout=30)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = Store(tmp_path / "runs", "recipe")
    store.prepare()
    return store.root


@pytest.fixture
def machine(root: Path) -> Iterator[Callable[..., Machine]]:
    """Starts machines, and kills what is left of them."""
    started: list[Machine] = []

    def start(name: str, **times: float) -> Machine:
        started.append(Machine(root, name, **times))
        return started[-1]

    yield start
    for one in started:
        one.process.send_signal(signal.SIGCONT)
        one.process.kill()
        one.ends()


def owner(root: Path) -> Path:
    return root / "recipe" / f".sft-{KEY[:12]}.owner.lock"


def test_another_machine_that_is_alive_is_seen_and_named(root: Path, machine: Callable[..., Machine]) -> None:
    first = machine("node1")
    assert first.hears() == "held"
    second = machine("node2", stale_s=60.0)
    assert second.hears().startswith(f"note process {first.process.pid} on node1, since 20")
    told = second.hears()
    assert told.startswith(
        f"refused stage 'sft' is being made by another process: process {first.process.pid} on node1"
    )
    assert first.asked("hold") == "still held"
    first.ends()
    assert not owner(root).exists(), "what has ended leaves no sign"
    third = machine("node2")
    assert third.hears() == "held", "at once: nobody is there"
    third.ends()


def test_a_dead_machines_stage_is_taken_over_and_told(root: Path, machine: Callable[..., Machine]) -> None:
    first = machine("node1")
    assert first.hears() == "held"
    first.process.kill()
    first.ends()
    second = machine("node2", stale_s=0.5)
    assert "on node1" in second.hears()
    assert second.hears().startswith(f"note taken over from process {first.process.pid} on node1")
    assert second.hears() == "held"
    second.ends()


def test_a_machine_that_slept_ends_before_it_writes(root: Path, machine: Callable[..., Machine]) -> None:
    """Stopped, not dead: it goes on, and finds another's name."""
    first = machine("node1")
    assert first.hears() == "held"
    first.process.send_signal(signal.SIGSTOP)
    second = machine("node2", stale_s=0.5)
    assert [second.hears().split()[0] for _ in range(3)] == ["note", "note", "held"]
    first.process.send_signal(signal.SIGCONT)
    told = first.asked("publish")
    assert told.startswith("refused stage 'sft' was taken over by process"), told
    assert second.asked("publish") == "still held"
    assert second.hears() == "published"
    second.ends()
    first.ends()
    assert (root / "recipe" / f"sft-{KEY[:12]}" / "by").read_text() == "node2"


def test_of_two_that_find_it_dead_at_once_one_alone_has_it(root: Path, machine: Callable[..., Machine]) -> None:
    first = machine("node1")
    assert first.hears() == "held"
    first.process.kill()
    first.ends()
    others = [machine(f"node{i}", stale_s=1.5) for i in (2, 3, 4)]
    last: list[str] = []
    for other in others:
        line = other.hears()
        while line.startswith("note"):
            line = other.hears()
        last.append(line.split()[0])
    assert sorted(last) == ["held", "refused", "refused"]
    for other in others:
        other.ends()


def test_this_machines_dead_process_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE_S", 1000.0)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    who = {"host": "here", "machine": lock._machine(), "pid": int(dead.stdout), "born": 1, "token": "x"}
    owner(root).write_text(json.dumps(who), encoding="utf-8")
    with Store(root, "recipe").locked("sft", KEY):
        assert json.loads(owner(root).read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert not owner(root).exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_reason_to_refuse(
    number: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    store = Store(root, "recipe")
    with store.locked("sft", KEY):
        with pytest.raises(StageFailed, match="being made by another process"), store.locked("sft", KEY):
            pytest.fail("both hold it")
        store.check_held("sft", KEY)


def test_a_cut_sign_of_life_is_watched_and_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE_S", 0.3)
    owner(root).write_text('{"host": "no', encoding="utf-8")
    notes: list[str] = []
    with Store(root, "recipe").locked("sft", KEY, notes.append):
        pass
    assert notes[-1].startswith("taken over from a process without a name")


def test_a_clock_that_goes_back_does_not_make_it_dead(root: Path, machine: Callable[..., Machine]) -> None:
    """Signs of life are told apart, never compared with a clock: one from the future is an old one like any."""
    first = machine("node1")
    assert first.hears() == "held"
    tomorrow = time.time() + 86_400
    os.utime(owner(root), (tomorrow, tomorrow))
    second = machine("node2", stale_s=60.0)
    second.hears()
    assert second.hears().startswith("refused stage 'sft' is being made")
    first.ends()
