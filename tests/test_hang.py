"""A process that hangs: who it is, where it stands, and that nothing is left of it. No torch in these."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_plugins.errors import StageFailed
from posttrain_plugins.launch import hang
from posttrain_plugins.launch.hang import Beat, Silence
from posttrain_plugins.launch.job import Job
from posttrain_plugins.launch.processes import started, workers_here

LIMIT_S = 120  # of what takes a second, on a machine that is busy
LAUNCHER = """
import os, subprocess, sys
worker, job, count = sys.argv[1:]
workers = [
    subprocess.Popen([sys.executable, worker, job], env={**os.environ, "RANK": str(rank)}, start_new_session=True)
    for rank in range(int(count))
]
for one in workers:
    one.wait()
"""
WORKER = """
import os, sys, time
from pathlib import Path
from posttrain_plugins.launch.hang import Beat, tell_stacks
from posttrain_plugins.launch.job import Job, write_presence
from posttrain_plugins.launch.rank import wait_until

job, rank = Job.read(Path(sys.argv[1])), int(os.environ["RANK"])
tell_stacks(job.folder, rank)
beat = Beat(job.folder, rank)
write_presence(job.folder, rank)

def stuck():
    time.sleep(3600)

beat(3)
{work}
"""


def is_there(pid: int) -> bool:
    """Whether a process lives; one that has ended and was not waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def steps(folder: Path) -> list[int]:
    """Those in which processes say that they are."""
    said = [json.loads(file.read_text())["step"] for file in folder.glob("beat-*.json")]
    return sorted(step for step in said if step is not None)


@contextlib.contextmanager
def workers(folder: Path, work: str) -> Iterator[tuple[Job, dict[int, int]]]:
    """Within, three processes that have come to their third step and then do `work`; rank -> process id."""
    job = Job("sft", "k", {}, {}, str(folder), str(folder), None, "ddp", 3, [])
    job.write("")
    (folder / "work.py").write_text(WORKER.replace("{work}", work))
    (folder / "launcher.py").write_text(LAUNCHER)
    command = [sys.executable, str(folder / "launcher.py"), str(folder / "work.py"), str(job.file), "3"]
    with started(job, command, {**os.environ}) as launcher:
        until = time.monotonic() + LIMIT_S
        while len(steps(job.folder)) < 3:
            assert time.monotonic() < until
            assert launcher.poll() is None, (job.folder / "launcher.log").read_text()
            time.sleep(0.05)
        yield job, workers_here(job.folder)


def watched(job: Job, hang_after_s: float) -> StageFailed:
    """What is told of processes of which one hangs."""
    silence, until = Silence("sft", job.folder, 3, hang_after_s), time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        if (error := silence.look()) is not None:
            return error
        time.sleep(0.02)
    raise AssertionError("nobody was found to hang")


def test_the_process_that_hangs_is_told_with_its_line_and_none_is_left(tmp_path: Path) -> None:
    """The others wait for it, and have said nothing for as long."""
    with workers(tmp_path, "stuck() if rank == 1 else wait_until(lambda: False)") as (job, pids):
        assert len(pids) == 3
        assert all(map(is_there, pids.values()))
        error = watched(job, 0.5)
    assert error.message.startswith("process 1 of stage 'sft' hangs: nothing for 0.5 s, process 1: step 3, at work.py:")
    assert error.message.endswith(" in stuck")
    assert "goes on from the newest checkpoint" in str(error.hint)
    assert "hang_after_s" in str(error.hint)
    assert "in wait_until" in (job.folder / "stack-0.txt").read_text()
    assert not any(map(is_there, pids.values())), "no process outlives the run"
    assert job.over.is_file(), "workers of other machines are told to end"


@pytest.mark.parametrize("others", ["wait_until(lambda: False)", "stuck()", "beat(3 - (rank == 0)); stuck()"])
def test_a_process_that_was_stopped_says_nothing_and_is_told_all_the_same(tmp_path: Path, others: str) -> None:
    """Wherever the others wait, and if their last word is of a step before: it does not run, and they do."""
    with workers(tmp_path, others) as (job, pids):
        os.kill(pids[2], signal.SIGSTOP)
        error = watched(job, 0.5)
    assert "process 2 of stage 'sft' hangs: nothing for 0.5 s, process 2: step 3" in error.message
    assert not any(map(is_there, pids.values()))


def test_a_process_a_step_behind_is_the_one_whatever_it_waits_for(tmp_path: Path) -> None:
    """What it waits for comes from nobody of the others, which have gone on."""
    with workers(tmp_path, "beat(3 + (rank != 0)); wait_until(lambda: False)") as (job, _):
        while steps(job.folder) != [3, 4, 4]:
            time.sleep(0.05)
        error = watched(job, 0.5)
    assert error.message.startswith("process 0 of stage 'sft' hangs: nothing for 0.5 s, process 0: step 3")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("torch/distributed/distributed_c10d.py", "3067 in all_reduce"),
        ("torch/nn/parallel/distributed.py", "2363 in _distributed_broadcast_coalesced"),
        ("torch/autograd/graph.py", "869 in _engine_run_backward"),
        ("deepspeed/runtime/zero/partition_parameters.py", "120 in wait"),
        ("deepspeed/comm/torch.py", "171 in wait"),
    ],
)
def test_where_a_process_waits_for_others_is_known(file: str, line: str) -> None:
    places = {
        0: [f"/env/site-packages/{file}:{line}"],
        1: ["/env/site-packages/torch/nn/modules/linear.py:134 in forward"],
    }
    assert hang._hung({0: 5, 1: 5}, places) == [1]
    assert hang._hung({0: 5, 1: 5}, places | {1: places[0]}) == [0, 1], "nobody can be told from the other"


# --- the clock -------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(hang.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(hang.time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    return clock


def test_who_says_that_it_gets_on_does_not_hang(tmp_path: Path, clock: Clock) -> None:
    """However long a step takes: within one it is said once a second at most, and not at every token."""
    silence = Silence("sft", tmp_path, 1, 100.0)
    beat, written = Beat(tmp_path, 0), set()
    for tick in range(4000):
        clock.now += 0.1
        beat(7)
        written.add(beat.file.read_text())
        assert silence.look() is None, tick
    assert 300 <= len(written) <= 401
    for _ in range(99):
        clock.now += 1.0
        assert silence.look() is None
    clock.now += 20.0
    error = silence.look()
    assert error is not None
    assert "process 0 of stage 'sft' hangs: nothing for 100 s, process 0: step 7" in error.message


def test_one_that_never_came_is_told_from_those_that_load(tmp_path: Path, clock: Clock) -> None:
    silence = Silence("sft", tmp_path, 3, 100.0)
    Beat(tmp_path, 0)
    Beat(tmp_path, 1)(1)
    errors = []
    for _ in range(30):
        clock.now += 10.0
        errors += [error.message for error in (silence.look(),) if error is not None]
    assert errors[0].startswith("processes 0, 2 of stage 'sft' hang: nothing for 100 s")
    assert errors[0].endswith("process 0: before its first step; process 2: not even its start")


def test_a_run_that_was_stopped_with_its_processes_does_not_take_them_to_hang(tmp_path: Path, clock: Clock) -> None:
    silence = Silence("sft", tmp_path, 1, 100.0)
    beat = Beat(tmp_path, 0)
    beat(1)
    assert silence.look() is None
    for step in range(2, 9):
        clock.now += 36000.0  # a scheduler suspends them all, and lets them go on
        assert silence.look() is None
        beat(step)
