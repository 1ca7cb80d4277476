"""A disk that is full: no traceback, but what is full, what was kept and what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.recipe.run.full_disk import full_disk

STAGE = """
from dataclasses import dataclass

from posttrain_plugins.checkpoints import mark_complete
from posttrain_plugins.types import StageResult

@dataclass
class Writes:
    keeps: str = "nothing"
    produces = "figures"

    def __call__(self, context):
        if context.resume_from is not None or (context.folder / "log.jsonl").exists():
            return StageResult(metrics={"resumed": 1.0})
        for step in (4, 8) if self.keeps == "checkpoint" else ():
            folder = context.folder / f"checkpoints/checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / "model.bin").write_bytes(b"model")
            if step == 4:
                mark_complete(folder)
        if self.keeps == "log":
            (context.folder / "log.jsonl").write_text("{}")
        with open("/dev/full", "w") as file:
            file.write("all of it")
"""
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    (tmp_path / "mine.py").write_text(STAGE, encoding="utf-8")
    return lambda keeps: write_recipe(
        "name: full\nmodel: none/such\nstages: {it: {use: './mine.py:Writes', keeps: {keeps}}}", keeps=keeps
    )


@needs_dev_full
@pytest.mark.parametrize(
    ("keeps", "then", "is_kept"),
    [
        ("nothing", "the stage begins anew, it had saved nothing", False),
        ("checkpoint", "it goes on from checkpoint-4", True),
        ("log", "what was answered is in its log, and is not asked for again", True),
    ],
)
def test_a_stage_says_what_is_kept_and_goes_on_from_it(
    keeps: str, then: str, is_kept: bool, recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(
        StageFailed, match=r"^stage 'it': the disk is full: .* could not be written, .* MiB are free"
    ) as caught:
        pp.run(recipe(keeps), runs_dir=tmp_path / "runs")
    assert caught.value.hint == f"free some space, then give the same command again: {then}"
    assert isinstance(caught.value.__cause__, StageFailed), "--debug shows where"
    kept = {path.name for path in tmp_path.glob("runs/full/.it-*.partial/*")}
    assert bool(kept) == is_kept
    left = {path.name for path in tmp_path.glob("runs/full/.it-*.partial/checkpoints/*")}
    assert left == ({"checkpoint-4"} if keeps == "checkpoint" else set()), "what could not be written makes room"
    if is_kept:
        assert pp.run(recipe(keeps), runs_dir=tmp_path / "runs")["it"].metrics == {"resumed": 1.0}


@needs_dev_full
def test_the_command_shows_no_traceback(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "posttrain_plugins", "run", str(recipe("checkpoint")), "--runs-dir", "runs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "error: stage 'it': the disk is full" in done.stderr
    assert "goes on from checkpoint-4" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_runs_folder_on_a_full_disk_is_told_first(
    recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file can still be made there."""

    def refuse(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        pp.run(recipe("nothing"), runs_dir=tmp_path / "runs")
    assert list((tmp_path / "runs/full").iterdir()) == []


def raised(before: BaseException, after: BaseException) -> BaseException:
    """The second, raised while the first was handled."""
    after.__context__ = before
    return after


FULL = [  # as they came from a small tmpfs
    OSError(errno.ENOSPC, "No space left on device", "/mnt/log.jsonl"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    raised(OSError(errno.ENOSPC, "No space left on device"), KeyError("while it was cleaned up")),
]
TORCH = [
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 115904 vs 115796"),
    RuntimeError("basic_ios::clear: iostream error"),
    RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
]
OTHERS = [OSError(errno.EACCES, "Permission denied"), RuntimeError("CUDA error"), KeyError(28)]


@pytest.mark.parametrize("error", [*FULL, *TORCH, *OTHERS], ids=str)
@pytest.mark.parametrize("free", [0, 2**30], ids=["no byte free", "a GiB free"])
def test_who_tells_it_how(error: BaseException, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that it could not write and not why: the disk is asked."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    found = full_disk(error, tmp_path)
    assert (found is not None) == (error in FULL or (error in TORCH and free == 0))
    if found is not None:
        named = getattr(error, "filename", None) or tmp_path
        assert found.message.startswith(f"the disk is full: {named} could not be written, {free / 2**20:,.1f} MiB")


def test_a_chain_that_bites_its_tail_ends(tmp_path: Path) -> None:
    first, second = KeyError("a"), KeyError("b")
    first.__context__, second.__context__ = second, first
    assert full_disk(first, tmp_path) is None
