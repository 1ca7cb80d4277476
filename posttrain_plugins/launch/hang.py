"""A process that hangs: each says that it gets on, and the run ends them when one has not for too long. No paper.

A process that hangs holds up all others, which wait for it in a collective: to the run they all look alike. So it is
told from them by its step, and by where its main thread stands: one that waits for others stands in a collective. Only
the main thread says that it gets on, at the boundaries of its work, since a thread of its own would say so of a process
that hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import sysconfig
import time
from pathlib import Path

from posttrain_plugins.errors import StageFailed
from posttrain_plugins.launch.job import write_json
from posttrain_plugins.launch.processes import workers_here

__all__ = ["Beat", "Silence", "tell_stacks"]

EVERY_S = 1.0
LOOKS = 10  # in the time after which a process hangs
LONGEST_LOOK_S = 10.0
STACKS_S = 3.0
STACK_SIGNAL = signal.SIGUSR2  # SIGUSR1 is a scheduler's
FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)
WAITING = re.compile(
    r"/torch/distributed/|/torch/nn/parallel/distributed\.py|/deepspeed/(comm|runtime)/"
    r"|in _engine_run_backward|in wait_until"
)
"""Where the innermost frame of a process is that waits for others: DDP's collectives are in the backward pass, and
before the forward pass where it sends its buffers; DeepSpeed waits for handles of its own."""


class Beat:
    """Writes how far this process is: at each new step, and within one once a second.

    Args:
        folder: of the job.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.file = folder / f"beat-{rank}.json"
        self.step: int | None = None
        self.written_at = 0.0
        write_json(self.file, {"step": None, "at_s": time.monotonic()})

    def __call__(self, step: int) -> None:
        """Say that the main thread is alive in a step."""
        now = time.monotonic()
        # between two tokens of a rollout, too: a file for each would cost what the token does on a slow disk
        if step == self.step and now - self.written_at < EVERY_S:
            return
        self.step, self.written_at = step, now
        write_json(self.file, {"step": step, "at_s": now})


def tell_stacks(folder: Path, rank: int) -> None:
    """Let this process write where each of its threads stands when the run asks for it, whatever it is in.

    Args:
        folder: of the job; `stack-R.txt` in it.
        rank: of this process.
    """
    # written by faulthandler's own C: a main thread that hangs runs no handler of Python's
    faulthandler.register(STACK_SIGNAL, _stack(folder, rank).open("w"), all_threads=True)


class Silence:
    """For how long each process has said nothing, by this process's own clock: those of two machines differ.

    Args:
        stage: its id.
        folder: of the job.
        world_size: how many processes there are.
        hang_after_s: after so long without a word one of them hangs.
    """

    def __init__(self, stage: str, folder: Path, world_size: int, hang_after_s: float) -> None:
        self.stage, self.folder, self.hang_after_s = stage, folder, hang_after_s
        self.every_s = min(LONGEST_LOOK_S, hang_after_s / LOOKS)
        self.said = dict.fromkeys(range(world_size), "")
        self.silent_s = dict.fromkeys(range(world_size), 0.0)
        self.looked_at = time.monotonic()

    def look(self) -> StageFailed | None:
        """Return the error that names who hangs; None while all get on."""
        passed_s = time.monotonic() - self.looked_at
        if passed_s < self.every_s:
            return None
        self.looked_at += passed_s
        # where the run was stopped for an hour, so were its processes
        passed_s = min(passed_s, 2 * self.every_s)
        for rank, before in self.said.items():
            self.said[rank] = self._read(rank)
            self.silent_s[rank] = 0.0 if self.said[rank] != before else self.silent_s[rank] + passed_s
        if max(self.silent_s.values()) < self.hang_after_s:
            return None
        return self._error()

    def _read(self, rank: int) -> str:
        file = self.folder / f"beat-{rank}.json"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def _error(self) -> StageFailed:
        places = _places(self.folder)
        steps = {rank: json.loads(said)["step"] if said else None for rank, said in self.said.items()}
        hung = _hung(steps, places)
        told = "; ".join(_told(rank, steps[rank], bool(self.said[rank]), places.get(rank)) for rank in hung[:4])
        which, verb = ("process", "hangs") if len(hung) == 1 else ("processes", "hang")
        numbers = ", ".join(map(str, hung))
        where = f"see {self.folder}/{'stack-*.txt and ' if places else ''}rank-*.log"
        return StageFailed(
            f"{which} {numbers} of stage '{self.stage}' {verb}: nothing for {self.hang_after_s:g} s, {told}",
            hint=f"{where}. The next run goes on from the newest checkpoint; launch: {{hang_after_s: N}} waits longer",
        )


def _hung(steps: dict[int, int | None], places: dict[int, list[str]]) -> list[int]:
    """Return who holds up the others: stopped, or in the first step of all and not where a process waits for others."""
    # faulthandler answers in C from whatever the process is in: one that is silent does not run at all
    if stopped := [rank for rank, frames in places.items() if not frames]:
        return stopped
    counted = {rank: -1 if step is None else step for rank, step in steps.items()}
    behind = [rank for rank, step in counted.items() if step == min(counted.values())]
    # of one that was not asked, on another machine or before its start, nobody can say that it waits
    return [rank for rank in behind if not WAITING.search(places.get(rank, [""])[0])] or behind


def _told(rank: int, step: int | None, has_begun: bool, frames: list[str] | None) -> str:
    known = f"step {step}" if step is not None else "before its first step" if has_begun else "not even its start"
    if not frames:
        return f"process {rank}: {known}"
    libraries = (sysconfig.get_path("stdlib"), "site-packages", "<frozen")
    own = next((frame for frame in frames if not any(name in frame for name in libraries)), frames[0])
    return f"process {rank}: {known}, at {_short(own)}" + (f" ({_short(frames[0])})" if own != frames[0] else "")


def _short(frame: str) -> str:
    """`/x/reward.py:3 in digits` -> `reward.py:3 in digits`."""
    return frame.rpartition(os.sep)[2]


def _places(folder: Path) -> dict[int, list[str]]:
    """Ask the processes on this machine where they stand: rank -> frames of the main thread, the innermost first.

    Those of one that does not answer are none.
    """
    texts: dict[int, str] = {}
    for rank, pid in workers_here(folder).items():
        # one that has not come so far would be ended by the signal, and one that has ended is there no more
        if _stack(folder, rank).is_file():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, STACK_SIGNAL)
                texts[rank] = ""
    until = time.monotonic() + STACKS_S
    while time.monotonic() < until:
        time.sleep(STACKS_S / 30)
        before = dict(texts)
        texts = {rank: _stack(folder, rank).read_text("utf-8") for rank in texts}
        if texts == before and all(texts.values()):  # and none is being written
            break
    # the main thread is the oldest, which is listed last
    frames = {rank: FRAME.findall(text.rpartition("hread ")[2]) for rank, text in texts.items()}
    known = {rank: found for rank, found in frames.items() if found or not texts[rank]}
    return {rank: [f"{file}:{line} in {name}" for file, line, name in found] for rank, found in known.items()}


def _stack(folder: Path, rank: int) -> Path:
    return folder / f"stack-{rank}.txt"
