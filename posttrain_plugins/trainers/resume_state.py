"""What a trainer holds beside weights, optimizer and random states, as files of its checkpoints.

transformers and TRL save none of it. Without what the log averages over, and what guarded rewards have counted, a run
that goes on tells other figures than one that was never stopped; without a reference that follows the policy
(`sync_ref_model`) it ends with other weights. The files are written before the checkpoint's marker, which lists them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.guard.guarded import guarded_in
from posttrain_plugins.trainers import compat

__all__ = ["restore_state", "save_state"]

REFERENCE = "reference.pt"


def save_state(checkpoint: Path, trainer: Any, inputs: Mapping[str, Any], seconds: float) -> None:
    """Add this process's part to a checkpoint that the trainer has saved.

    Args:
        checkpoint: its folder.
        trainer: in training.
        inputs: of the stage; its guarded rewards are found in there.
        seconds: that the training has taken so far.
    """
    import torch

    state = {
        "averages": compat.running_averages(trainer),
        "rewards": [reward.counts() for reward in guarded_in(inputs)],
        "seconds": seconds,
    }
    # each process its own: what it averages over is of its own rows
    _file(checkpoint, trainer).write_text(json.dumps(state, default=float), encoding="utf-8")
    if _has_moving_reference(trainer):
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        with compat.gathered_parameters(reference):
            if trainer.is_world_process_zero():
                torch.save(reference.state_dict(), checkpoint / REFERENCE)


def restore_state(checkpoint: Path, trainer: Any, inputs: Mapping[str, Any]) -> float | None:
    """Go on from what `save_state` wrote, when training has begun.

    Returns:
        The seconds that the training had taken; None where the checkpoint is from before there was such a file, so that
        figures are of the steps after it.

    Raises:
        InputError: it is, and the reference of then is lost.
    """
    import torch

    file = _file(checkpoint, trainer)
    if not file.is_file():
        if _has_moving_reference(trainer):
            raise InputError(
                f"{checkpoint.name} holds no reference, which sync_ref_model had moved: an earlier version saved it",
                hint="--force the stage, to train from its start",
            )
        return None
    state = json.loads(file.read_text(encoding="utf-8"))
    compat.restore_averages(trainer, state["averages"])
    for reward, counts in zip(guarded_in(inputs), state["rewards"], strict=True):
        reward.restore(counts)
    if _has_moving_reference(trainer):
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        with compat.gathered_parameters(reference, modifier_rank=0):
            reference.load_state_dict(torch.load(checkpoint / REFERENCE, map_location="cpu", weights_only=True))
    return float(state["seconds"])


def _file(checkpoint: Path, trainer: Any) -> Path:
    return checkpoint / f"resume_state_{trainer.args.process_index}.json"


def _has_moving_reference(trainer: Any) -> bool:
    return bool(getattr(trainer.args, "sync_ref_model", False)) and getattr(trainer, "ref_model", None) is not None
