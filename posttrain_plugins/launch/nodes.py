"""Several machines: the same command on each, by `srun`; the first runs the recipe, the others lend their processes.

`srun` says in the environment how many there are and which this is. The first writes an order for each launched stage
into the runs folder, which all reach, with its own address in it; the others start the launcher's part of their
machine, and leave when the first says that the run has ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from posttrain_plugins.errors import InputError
from posttrain_plugins.launch.job import write_json

__all__ = ["ALONE", "Nodes", "Order", "address", "check_divides", "end", "follow", "give", "nodes"]

POLL_S = 0.5
ENDED = "ended.json"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Nodes:
    """The machines of a run.

    Args:
        count: how many.
        index: which this is, from 0.
        name: of this start of the run, by which its orders are told from those of an earlier one.
    """

    count: int = 1
    index: int = 0
    name: str = ""


ALONE = Nodes()


@dataclass(frozen=True)
class Order:
    """What another machine has to start.

    Args:
        job: its file.
        launch_file: of `accelerate launch`.
        precision: of it.
        head: the first machine.
        port: of it.
    """

    job: str
    launch_file: str
    precision: str
    head: str
    port: int


def nodes(environment: Mapping[str, str] = os.environ) -> Nodes:
    """Return the machines that `srun` has started this command on, once on each; one where it was not `srun`.

    Raises:
        InputError: it was started more than once on a machine.
    """
    # of the step, not of the allocation: a batch script without `srun` runs on its first machine alone
    count, tasks = (int(environment.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("NODES", "TASKS"))
    if tasks > count:
        hint = f"srun --ntasks-per-node=1 posttrain run RECIPE --launch ddp --num-processes {tasks}"
        raise InputError(f"srun has started this run {tasks} times on {count} machines, expected once on each", hint)
    if count == 1:
        return ALONE
    name = "-".join(environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    return Nodes(count, int(environment.get("SLURM_NODEID", "0")), name)


def check_divides(of: Nodes, world_size: int) -> None:
    """Refuse a number of processes that cannot be divided among the machines.

    Raises:
        InputError: it is so.
    """
    if world_size % of.count:
        raise InputError(
            f"{world_size} processes cannot be divided among {of.count} machines",
            hint=f"--num-processes {max(1, world_size // of.count) * of.count}",
        )


def give(of: Nodes, folder: Path, order: Order) -> None:
    """Let the other machines start their part; none where there are no others.

    Args:
        of: the machines, of which this is the first.
        folder: of the recipe's runs.
        order: for all of them.
    """
    if of.count == 1:
        return
    home = _home(of, folder)
    home.mkdir(parents=True, exist_ok=True)
    # numbered by those that stand, so that nobody has to carry a count through the run
    write_json(home / f"{len([*home.glob('*.json')])}.json", asdict(order))


def end(of: Nodes, folder: Path) -> None:
    """Let the other machines leave."""
    if of.count > 1:
        for old in folder.glob(f".nodes-*/{ENDED}"):
            shutil.rmtree(old.parent, ignore_errors=True)
        _home(of, folder).mkdir(parents=True, exist_ok=True)
        write_json(_home(of, folder) / ENDED, {})


def follow(of: Nodes, folder: Path, start: Callable[[Order], None]) -> None:
    """Start what the first machine orders until its run has ended.

    Signals are the first one's to answer: a scheduler sends them to all.
    """
    before = {number: signal.signal(number, lambda number, frame: None) for number in SIGNALS}
    home, count = _home(of, folder), 0
    try:
        while not (home / ENDED).is_file():
            if (file := home / f"{count}.json").is_file():
                start(Order(**json.loads(file.read_text(encoding="utf-8"))))
                count += 1
            time.sleep(POLL_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def address() -> tuple[str, int]:
    """Return this machine's name and a free port."""
    with socket.socket() as free:
        free.bind(("", 0))
        return socket.gethostname(), int(free.getsockname()[1])


def _home(of: Nodes, folder: Path) -> Path:
    return folder / f".nodes-{of.name}"
