"""A checkpoint is gone on from only where it is as it was saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain_plugins.checkpoints import damage, has_checkpoint, mark_complete, newest_checkpoint


def checkpoint(folder: Path, step: int, is_marked: bool = True) -> Path:
    made = folder / f"checkpoints/checkpoint-{step}"
    (made / "critic").mkdir(parents=True)
    (made / "optimizer.pt").write_bytes(bytes(range(256)) * 10_000)  # 2.5 MB: its middle is in no digest
    (made / "trainer_state.json").write_text("{}")
    (made / "critic/head.safetensors").write_bytes(b"head")
    (made / "empty").touch()
    if is_marked:
        mark_complete(made)
    return made


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def end_changed(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"!")


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json", "critic/head.safetensors"])
@pytest.mark.parametrize("harm", [Path.unlink, cut, end_changed, grown])
def test_what_is_not_as_it_was_saved_is_found(name: str, harm: Callable[[Path], None], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    assert damage(folder) is None
    harm(folder / name)
    assert name in str(damage(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"files": [1]}), json.dumps({"files": {"a": 1}})])
def test_a_marker_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    (folder / "complete").write_text(text)
    assert damage(folder) == "its file 'complete' cannot be read"


def test_what_came_later_is_no_damage(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    (folder / "note.txt").write_text("mine")
    assert damage(folder) is None


def test_the_newest_that_is_whole_is_taken_and_damaged_ones_are_told(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert not has_checkpoint(tmp_path)
    for step in (2, 9, 10, 11):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 12, is_marked=False)
    cut(tmp_path / "checkpoints/checkpoint-11/optimizer.pt")
    (tmp_path / "checkpoints/checkpoint-10/trainer_state.json").unlink()
    assert has_checkpoint(tmp_path)
    notes: list[str] = []
    assert newest_checkpoint(tmp_path, notes.append) == tmp_path / "checkpoints/checkpoint-9"
    assert notes == [
        "checkpoint-11 is damaged and passed over: 'optimizer.pt' has 2,559,999 bytes, expected 2,560,000",
        "checkpoint-10 is damaged and passed over: 'trainer_state.json' is missing",
    ]
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"checkpoint-2", "checkpoint-9"}, "the training writes the other numbers again"


def test_torn_checkpoints_alone_are_none(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4, is_marked=False)
    notes: list[str] = []
    assert not has_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path, notes.append) is None
    assert notes == []
