"""What of a Python file counts is kept from process to process, and is never what stood in another file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain_plugins.recipe import read_source
from posttrain_plugins.recipe.read_source import CodeRead, _Memory

SOURCE = (
    b'"""Say."""\nimport a.b\nfrom .c import d\n\n\ndef f():\n    "Do."\n    from e import g  # late\n    return g\n'
)


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was parsed, in order."""
    found: list[bytes] = []
    read = read_source._read
    monkeypatch.setattr(read_source, "_read", lambda content: found.append(content) or read(content))
    return found


def kept(file: Path) -> CodeRead:
    """What a process finds of the source, which writes it down."""
    memory = _Memory(file)
    found = memory.of(SOURCE)
    memory.save()
    return found


def test_a_second_process_parses_nothing_and_says_the_same(tmp_path: Path, parses: list[bytes]) -> None:
    file = tmp_path / "new" / "sources.json"
    first = kept(file)
    assert first.imports == ((0, "a.b", ""), (1, "c", "d"), (0, "e", "g"))
    assert kept(file) == first
    assert parses == [SOURCE]
    assert _Memory(file).of(SOURCE + b"f()\n").code != first.code
    assert len(parses) == 2


def test_comments_and_docstrings_do_not_count(tmp_path: Path) -> None:
    memory = _Memory(tmp_path / "sources.json")
    assert memory.of(SOURCE) == memory.of(SOURCE.replace(b"# late", b"").replace(b'"Do."', b'"Do it."'))
    assert memory.of(SOURCE).code != memory.of(SOURCE.replace(b"return g", b"return 1")).code


@pytest.mark.parametrize(
    "content",
    ["", "torn {", "[]", "null", '{"made by": 1}', '{"made by": "MINE", "read": {"KEY": ["x"]}}',
     '{"made by": "MINE", "read": {"KEY": ["wrong", [["not", "a", "level"]]]}}', '{"made by": "MINE", "read": 3}',
     '{"made by": "another reader", "read": {"KEY": ["wrong", []]}}'],
)  # fmt: skip
def test_what_cannot_be_taken_is_read_again(content: str, tmp_path: Path, parses: list[bytes]) -> None:
    file = tmp_path / "sources.json"
    first = kept(file)
    (key,) = json.loads(file.read_text())["read"]
    file.write_text(content.replace("MINE", _Memory(file).made_by).replace("KEY", key))
    assert kept(file) == first
    assert len(parses) == 2
    assert kept(file) == first
    assert len(parses) == 2  # and it was mended


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(tmp_path: Path, parses: list[bytes]) -> None:
    (tmp_path / "file").write_text("no folder")
    file = tmp_path / "file" / "sources.json"
    assert kept(file) == kept(file)
    assert len(parses) == 2


def test_a_user_without_a_home_folder_reads_all_himself(monkeypatch: pytest.MonkeyPatch, parses: list[bytes]) -> None:
    """A container that runs as a number which no file of users has (`--user 12345`)."""

    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    memory = read_source._memory.__wrapped__()
    assert memory.of(SOURCE) == memory.of(SOURCE)
    memory.save()
    assert parses == [SOURCE]


def test_of_too_many_those_of_this_process_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sources.json"
    monkeypatch.setattr(read_source, "MOST", 3)
    memory = _Memory(file)
    for i in range(3):
        memory.of(b"x = %d" % i)
    memory.save()
    assert len(_Memory(file).known) == 3
    kept(file)
    assert list(_Memory(file).known.values()) == [_Memory(tmp_path / "none").of(SOURCE)]


def test_what_is_no_python_is_told_each_time(tmp_path: Path) -> None:
    memory = _Memory(tmp_path / "sources.json")
    for _ in range(2):
        with pytest.raises(SyntaxError):
            memory.of(b"def f(:\n")
