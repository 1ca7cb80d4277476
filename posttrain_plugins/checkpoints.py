"""Checkpoints: a marker that lists what one consists of, and the newest that is still all of it.

The trainer writes a checkpoint's files one after the other, and a disk or a person may take one away later. A run that
went on from a checkpoint without its optimizer would end with other weights, without a word. So the marker is written
last, names every file with its size and a digest of its ends, and is compared before a checkpoint is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.types import CHECKPOINT_MARKER, Issue

__all__ = [
    "check_period",
    "check_push",
    "damage",
    "generation_period",
    "has_checkpoint",
    "mark_complete",
    "newest_checkpoint",
]

PUSHING = ("push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_always_push", "hub_revision")
"""Options of transformers' `TrainingArguments` that say what is put on the Hub while it trains, and as whom."""

DIGESTED_BYTES = 1 << 20
"""Read from each end of a file. All of an optimizer of 60 GB would take minutes at every save; a file that was cut,
emptied or written half shows in its size or its end."""


def generation_period(args: Any) -> int:
    """Return after how many optimizer steps the rollout buffer of GRPO or RLOO is used up; 1 for other trainers.

    TRL does not save the buffer, and starts to count micro-steps at 0 again when it resumes: only a checkpoint at a
    multiple of this goes on as if nothing had happened.

    Args:
        args: a trainer's config, or what has its fields.
    """
    # PPO's critic may have more passes over a rollout than its policy
    passes = max(getattr(args, name, None) or 1 for name in ("num_iterations", "critic_iterations"))
    micro_steps = (getattr(args, "steps_per_generation", None) or 1) * passes
    accumulation = args.gradient_accumulation_steps
    return next(n for n in range(1, micro_steps + 1) if n * accumulation % micro_steps == 0)


def check_period(args: Any) -> Issue | None:
    """Return why checkpoints at these `save_steps` could not be gone on from; None if they can."""
    period = generation_period(args)
    # below 1 it is a share of all steps
    if args.save_strategy != "steps" or args.save_steps < 1 or args.save_steps % period == 0:
        return None
    message = f"save_steps={args.save_steps:g} is no generation boundary; TRL cannot resume"
    return Issue(message, f"set save_steps to a multiple of {period}", "args.save_steps")


def mark_complete(folder: Path) -> None:
    """Write the marker of a checkpoint whose files are all there, after they have reached the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKPOINT_MARKER)
    for path in [*files, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        descriptor = os.open(path, os.O_RDONLY)  # a folder's own entry counts too: its files' names are written there
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    listed = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in files}
    # By one rename: a marker that is cut would be no JSON, but one that is empty could be taken for an older format.
    written = folder / f".{CHECKPOINT_MARKER}"
    written.write_text(json.dumps({"format": 1, "files": listed}), encoding="utf-8")
    written.rename(folder / CHECKPOINT_MARKER)


def check_push(given: Mapping[str, Any]) -> Issue | None:
    """Return that a trainer would put its checkpoints on the Hub: in public, by the name of their folder.

    Args:
        given: a trainer's options as the recipe has them. `hub_private_repo` alone is no push: trackio's Space asks it.
    """
    asked = [name for name in PUSHING if given.get(name)]
    if not asked:
        return None
    found = f"{asked[0]} would put checkpoints on the Hub as they come, in a public repository"
    hint = "a stage of its own, private unless said: {use: export, model: STAGE, to: FOLDER, push_to_hub: ME/NAME}"
    return Issue(found, hint, f"args.{asked[0]}")


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None where it is as it was saved."""
    try:
        written = json.loads((folder / CHECKPOINT_MARKER).read_text(encoding="utf-8"))["files"]
        listed = [(name, size, digest) for name, (size, digest) in written.items()]
    except FileNotFoundError:
        return "it was not saved to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its file '{CHECKPOINT_MARKER}' cannot be read"
    for name, size, digest in listed:
        path = folder / name
        if not path.is_file():
            return f"'{name}' is missing"
        if path.stat().st_size != size:
            return f"'{name}' has {path.stat().st_size:,} bytes, expected {size:,}"
        if _digest(path) != digest:
            return f"'{name}' has other contents than were saved"
    return None


def newest_checkpoint(partial: Path, note: Callable[[str], None] = lambda message: None) -> Path | None:
    """Return the newest checkpoint below a stage's partial folder that is as it was saved.

    Those that are newer and damaged are deleted, since the training that goes on writes their numbers again.

    Args:
        partial: the stage's folder while it is being made, with `checkpoints/checkpoint-STEP` in it.
        note: is told of each checkpoint that had a marker and is passed over.
    """
    folders = (partial / "checkpoints").glob("checkpoint-*")
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        wrong = damage(folder)
        if wrong is None:
            return folder
        if (folder / CHECKPOINT_MARKER).exists():  # one without was being written when the run was killed
            note(f"{folder.name} is damaged and passed over: {wrong}")
        shutil.rmtree(folder, ignore_errors=True)
    return None


def has_checkpoint(partial: Path) -> bool:
    """Return whether there is a checkpoint to go on from, by its marker alone."""
    return next((partial / "checkpoints").glob(f"checkpoint-*/{CHECKPOINT_MARKER}"), None) is not None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(DIGESTED_BYTES))
        if path.stat().st_size > DIGESTED_BYTES:
            stream.seek(-DIGESTED_BYTES, os.SEEK_END)
            digest.update(stream.read())
    return digest.hexdigest()[:16]
