"""Which of several processes this one is, and whether they train together as was asked. No other module asks.

A process that was started by `torchrun` or `accelerate launch` finds its number in its environment; any other is the
first of one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from posttrain_plugins.errors import StageFailed

__all__ = ["LAUNCHED", "check_engine", "is_first", "rank", "summed", "wait_until", "world"]

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which a process knows its place; a run hands none of its own on."""
POLL_S = 0.2


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Tell whether this process is the one that writes what all share."""
    return rank() == 0


def wait_until(is_ready: Callable[[], bool]) -> None:
    """Wait for what the first process makes, before there is a group in which to wait.

    If that process fails, the launcher ends this one.
    """
    while not is_ready():
        time.sleep(POLL_S)


def summed(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the sum of each figure over all processes, which all have to call it."""
    if world() == 1:
        return dict(figures)
    from accelerate.utils import gather_object

    total: dict[str, float] = {}
    for own in gather_object([dict(figures)]):
        for name, value in own.items():
            total[name] = total.get(name, 0.0) + value
    return total


def check_engine(engine: str, trainer: Any) -> None:
    """Compare what a trainer trains with with what the run asked for, once its model is wrapped.

    accelerate and transformers fall back without a word: to one process that trains alone, or from FSDP to DDP.

    Args:
        engine: `ddp`, `fsdp2`, `zero3` ...; empty where the run asked for none.
        trainer: when training begins.

    Raises:
        StageFailed: it is another engine, or knows of another number of processes.
    """
    known = trainer.accelerator.num_processes
    if known != world():
        raise StageFailed(
            f"{world()} processes were started, and each trains in a group of {known}: they would train apart",
            hint="posttrain run RECIPE --launch ddp --num-processes N, without torchrun around it",
        )
    found = _engine_of(trainer) if engine else ""
    if found != engine:
        hint = "accelerate has FSDP on accelerators only: --launch zero3" if engine.startswith("fsdp") else None
        raise StageFailed(f"{engine} was asked for, and the model is trained by {found}", hint=hint)


def _engine_of(trainer: Any) -> str:
    """Return the engine in force, by what the model is and not by what was configured."""
    # The wrapped model, and not the plugins of accelerate's state: those say what was asked for.
    wrapped, state = trainer.model_wrapped, trainer.accelerator.state
    kind = type(wrapped).__name__
    if kind == "DeepSpeedEngine":
        return f"zero{wrapped.zero_optimization_stage()}"
    if str(state.distributed_type).endswith("FSDP"):
        from torch.distributed.tensor import DTensor

        # accelerate calls it FSDP2 also where no module was wrapped, and each process then holds all of the model
        is_sharded = any(isinstance(parameter, DTensor) for parameter in wrapped.parameters())
        if trainer.accelerator.is_fsdp2:
            return "fsdp2" if is_sharded else "fsdp2 without a sharded parameter"
        return "fsdp1" if kind == "FullyShardedDataParallel" else kind
    is_alone = world() == 1 and str(state.distributed_type).endswith("NO")
    return "ddp" if kind == "DistributedDataParallel" or is_alone else kind
