"""The launcher and its workers: their command, their environment, and their end, which none of them outlives.

A kill of the run ends the launcher by the kernel (`PR_SET_PDEATHSIG`), and that the workers, each of which has asked
for the same: torchrun starts them in sessions of their own, so that no signal to a group would reach them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from posttrain_plugins.launch.job import Job
from posttrain_plugins.launch.nodes import ALONE, Nodes, Order
from posttrain_plugins.launch.rank import LAUNCHED

__all__ = ["command", "die_with_parent", "environment", "started", "workers_here"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PATIENCE_S = 5.0
"""For a launcher that is asked to end: its workers leave at once, and it has nothing of its own to save."""
POLL_S = 0.05


def command(job: Job, order: Order, of: Nodes = ALONE) -> list[str]:
    """Return the command that starts the workers of a job on this machine.

    The precision is always given: the file's own would go before the stage's `bf16`, without a word.

    Args:
        job: with the number of processes.
        order: file of `accelerate launch`, precision, and where the first machine listens.
        of: the machines.
    """
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", order.launch_file]
    options: dict[str, object] = {"num_processes": job.world_size, "num_machines": of.count, "machine_rank": of.index}
    options |= {"main_process_port": order.port, "mixed_precision": order.precision}
    options |= {"main_process_ip": order.head, "rdzv_backend": "static"} if of.count > 1 else {}
    # torchrun makes folders for logs, which it writes none of, and leaves them in the system's own if told no other
    options["log_dir"] = job.file.parent / "torchrun"
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*accelerate, *given, "-m", "posttrain_plugins.launch.worker", str(job.file)]


def environment(world_size: int, has_accelerator: bool, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the launcher, which its workers inherit.

    Args:
        world_size: among so many the threads of a CPU are divided, where nobody has said how many each has.
        has_accelerator: is there a GPU or the like?
        more: what an engine needs beside.
    """
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    # a folder here that is called like an optional package (`vllm`) would be taken for it
    kept["PYTHONSAFEPATH"] = "1"
    # torchrun would give each process one thread on a GPU's host, too, where that is enough
    kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world_size) if not has_accelerator else 1))
    if not has_accelerator:
        kept["ACCELERATE_USE_CPU"] = "true"  # without it each process would train alone
    return {**kept, **more}


@contextlib.contextmanager
def started(
    job: Job, command: list[str], environment: Mapping[str, str], of: Nodes = ALONE
) -> Iterator[subprocess.Popen[bytes]]:
    """Within, the launcher runs; after it, no process of the job does.

    Where it ends badly on the first machine, `over` tells the others, whose part may wait for ever.
    """
    name = "launcher.log" if of.index == 0 else f"launcher-{of.index}.log"
    with (job.folder / name).open("wb") as log:
        launcher = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is the run's alone: it lets the workers save first
            preexec_fn=die_with_parent,
        )
    try:
        yield launcher
    finally:
        if of.index == 0 and launcher.poll() != 0:
            job.over.touch()
        _end(launcher, job.folder)


def die_with_parent() -> None:
    """Let the kernel end this process when the one that has started it is gone; on Linux alone."""
    parent = os.getppid()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel was asked
        os._exit(1)


def workers_here(folder: Path) -> dict[int, int]:
    """Return the workers of a job that run on this machine, rank -> process id.

    Args:
        folder: of the job.
    """
    found = {}
    for file in folder.glob("rank-*.json"):
        said = json.loads(file.read_text(encoding="utf-8"))
        # by its own command line: a number may be another program's by now
        if said["host"] == socket.gethostname() and str(folder) in _command_of(said["pid"]):
            found[int(file.stem.rpartition("-")[2])] = int(said["pid"])
    return found


def _end(launcher: subprocess.Popen[bytes], folder: Path) -> None:
    # Asked first: torchrun passes it on to workers on systems where the kernel ends nobody with its parent.
    if launcher.poll() is None:
        launcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(PATIENCE_S)
    launcher.kill()
    launcher.wait()
    # Those that are left all the same have sessions of their own, so each is ended by its number.
    until = time.monotonic() + PATIENCE_S
    while (left := workers_here(folder)) and time.monotonic() < until:
        for pid in left.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)  # none is our child, so there is nothing to wait on; a GPU is free once they are gone


def _command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
