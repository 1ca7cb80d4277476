"""Each room says in its `__init__` what lies in it, file by file, and that table is the disk.

A room is a folder of the package that holds Python files. Its `__init__` has a docstring with a table, a row a file or
a folder, several in one cell where they belong together:

    | file             | holds                        |
    |------------------|------------------------------|
    | `a.py`, `b.py`   | two that belong together     |
    | `inner/`         | a room within                |
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import posttrain_plugins

PACKAGE = Path(posttrain_plugins.__file__).parent
NOT_MAPPED = {"__init__.py", "__main__.py"}


def rooms(package: Path) -> list[Path]:
    """Every folder with Python files, the package itself too; what `plugins new` copies is no room."""
    folders = {file.parent for file in package.rglob("*.py") if "templates" not in file.relative_to(package).parts}
    return sorted(folders)


def wrong(room: Path) -> list[str]:
    """What a room's map lacks, has too much or has twice."""
    doc = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = [name for cell in re.findall(r"^\| *(`[^|]*)\|", doc, re.M) for name in re.findall(r"`([^`]+)`", cell)]
    there = {path.name for path in room.glob("*.py")} | {
        f"{path.name}/" for path in room.iterdir() if path.name != "__pycache__" and any(path.rglob("*.py"))
    }
    lacking = sorted(there - NOT_MAPPED - set(named))
    return [
        *(f"{name} is not in the map" for name in lacking),
        *(f"{name} is in the map and not on disk" for name in sorted(set(named) - there)),
        *(f"{name} stands twice in the map" for name, count in Counter(named).items() if count > 1),
    ]


@pytest.mark.parametrize("room", rooms(PACKAGE), ids=lambda room: room.relative_to(PACKAGE).as_posix())
def test_the_map_is_the_disk(room: Path) -> None:
    assert wrong(room) == []


def test_all_rooms_are_looked_at() -> None:
    names = {room.relative_to(PACKAGE).as_posix() for room in rooms(PACKAGE)}
    assert len(names) >= 25
    assert {".", "plugins", "trainers/ppo"} <= names


MAP = (
    '"""A room.\n\n| file | holds |\n|---|---|\n| `a.py`, `b.py` | two |\n| `inner/` | a room within `a.py`\'s |\n"""\n'
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", None),
        ("touch c.py", "c.py is not in the map"),
        ("remove b.py", "b.py is in the map and not on disk"),
        ("touch other/d.py", "other/ is not in the map"),
        ("twice", "a.py stands twice in the map"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, change: str, message: str | None) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("a.py", "b.py", "inner/__init__.py", "__main__.py"):
        (tmp_path / name).touch()
    (tmp_path / "__init__.py").write_text(
        MAP.replace("| two |", "| two |\n| `a.py` | again |") if change == "twice" else MAP
    )
    verb, _, name = change.partition(" ")
    if verb == "touch":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    elif verb == "remove":
        (tmp_path / name).unlink()
    assert wrong(tmp_path) == ([] if message is None else [message])
