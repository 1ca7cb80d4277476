"""A disk that is full, a file that may not grow: how it is told, what of a stage was kept, what to do. No paper."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from posttrain_plugins.checkpoints import newest_checkpoint
from posttrain_plugins.errors import PosttrainError, StageFailed

__all__ = ["REQUEST_LOG", "full_disk", "stage_on_full_disk"]

REQUEST_LOG = "log.jsonl"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
TOLD_AS = ("No space left on device", *(f"os error {code}" for code in NO_SPACE))  # by Rust: safetensors, tokenizers
TORCH = ("PytorchStreamWriter", "inline_container", "iostream error")  # it says that it could not write, and not why
FREE_BYTES = 1 << 20  # a disk with less than this is full, where nobody says why a file could not be written


def full_disk(error: BaseException, folder: Path) -> PosttrainError | None:
    """Return what to tell where an error, or one that it came from, is that of a full disk; else None.

    Args:
        error: what was raised.
        folder: where was written, if the error names no file.
    """
    for cause in _causes(error):
        place = Path(getattr(cause, "filename", None) or folder)
        text = str(cause)
        if getattr(cause, "errno", None) == errno.EFBIG:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            told = f", the limit is {limit / 2**20:,.1f} MiB" if limit != resource.RLIM_INFINITY else ""
            return PosttrainError(
                f"a file may not grow any further: {place}{told}",
                hint="raise the limit (ulimit -f unlimited) or change the disk, then give the same command again",
            )
        is_told = getattr(cause, "errno", None) in NO_SPACE or any(words in text for words in TOLD_AS)
        if is_told or (any(words in text for words in TORCH) and _free(folder) < FREE_BYTES):
            return PosttrainError(
                f"the disk is full: {place} could not be written, {_free(place) / 2**20:,.1f} MiB are free",
                hint="free some space, then give the same command again",
            )
    return None


def stage_on_full_disk(error: BaseException, stage: str, partial: Path) -> StageFailed | None:
    """Return the error of a stage that met a full disk, after deleting the checkpoint that it could not write.

    Args:
        error: what the stage has raised.
        stage: its name.
        partial: its folder while it is made.
    """
    full = full_disk(error, partial)
    if full is None:
        return None
    checkpoint = newest_checkpoint(partial)
    log = partial / REQUEST_LOG
    if checkpoint is not None:
        then = f"it goes on from {checkpoint.name}"
    elif log.is_file() and log.stat().st_size:
        then = "what was answered is in its log, and is not asked for again"
    else:
        then = "the stage begins anew, it had saved nothing"
    return StageFailed(f"stage '{stage}': {full.message}", hint=f"{full.hint}: {then}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(20):  # a chain may bite its tail
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _free(path: Path) -> int:
    """Return the bytes that are free on the disk of a path, which need not be there."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(there).free
