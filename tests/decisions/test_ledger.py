"""A ledger of decisions loses nothing that it acknowledged, whatever kills its writer, and holds nothing twice."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.decisions.item import Decision
from posttrain_plugins.decisions.ledger import Ledger, LedgerInUse, effective, read_all, read_ledger
from posttrain_plugins.errors import InputError, PosttrainError


def decision(id: str, **fields: object) -> Decision:
    given: dict[str, Any] = {"item": "i" * 64, "mode": "accept", "annotator": "ann", "verdict": True, **fields}
    return Decision(id, **given)


def ids(path: Path) -> list[str]:
    return [one.id for one in read_ledger(path)]


# --- on disk before it is acknowledged --------------------------------------------------------------------------------

WRITER = """
import json, sys
from pathlib import Path
from posttrain_plugins.decisions.item import Decision
from posttrain_plugins.decisions.ledger import Ledger

with Ledger.open(Path(sys.argv[1])) as ledger:
    for line in sys.stdin:
        print(ledger.append(Decision.from_json(json.loads(line))).id, flush=True)
"""


def test_what_was_acknowledged_survives_ten_kills(tmp_path: Path) -> None:
    path, rng = tmp_path / "decisions.jsonl", random.Random(0)
    waiting = [decision(f"d{i}", annotator=f"a{i % 3}", session=f"tab{i % 2}", note="x" * 500) for i in range(500)]
    kill_at = sorted(rng.sample(range(20, 480), 10))
    acknowledged: list[str] = []
    kills = 0
    while waiting:
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            answer = b" "
            while waiting and answer:  # where it dies unanswered, the same decision is sent again to the next one
                with contextlib.suppress(BrokenPipeError):
                    writer.stdin.write(json.dumps(waiting[0].to_json()).encode() + b"\n")
                if kills < 10 and len(acknowledged) >= kill_at[kills]:
                    kills += 1
                    time.sleep(rng.uniform(0, 0.004))  # about the length of a write: before it, within it, after it
                    writer.kill()
                answer = writer.stdout.readline()
                acknowledged += [waiting.pop(0).id] if answer else []
            writer.kill()
    assert kills == 10
    assert len(set(acknowledged)) == 500
    found = [one.id for one in read_all(path)]
    assert sorted(found) == sorted(set(acknowledged))  # none lost, none twice


def test_a_decision_is_synced_before_it_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "d.jsonl", []
    with Ledger.open(path) as ledger:
        monkeypatch.setattr(os, "fsync", lambda number: synced.append(path.read_text().count("\n")))
        for number in range(3):
            ledger.append(decision(f"d{number}"))
            assert synced == list(range(1, number + 2))


def test_a_line_that_is_torn_at_any_byte_is_cut_kept_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with Ledger.open(path) as ledger:
        ledger.append(decision("first"))
        whole = path.read_bytes()
        ledger.append(decision("second", note="é"))
    content = path.read_bytes()
    near_the_ends = {*range(len(whole), len(whole) + 9), *range(len(content) - 9, len(content) + 1)}
    for end in sorted(near_the_ends | {*range(len(whole), len(content), 11)}):
        path.write_bytes(content[:end])
        torn = content[len(whole) : end] if end < len(content) else b""
        assert ids(path) == (["first"] if end < len(content) else ["first", "second"])  # a reader repairs nothing
        assert path.read_bytes() == content[:end]
        with Ledger.open(path) as ledger:
            assert ledger.torn_bytes == len(torn)
            ledger.append(decision("third"))
        assert ids(path) == [*(["first"] if end < len(content) else ["first", "second"]), "third"]
        rest = path.with_name("d.jsonl.torn")
        assert (rest.read_bytes() if torn else b"\n") == torn + b"\n"
        rest.unlink(missing_ok=True)


def test_a_full_disk_writes_no_half_line_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.jsonl"

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Ledger.open(path) as ledger:
        ledger.append(decision("first"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(PosttrainError, match="No space left") as raised:
                ledger.append(decision("second"))
        assert "make room" in str(raised.value)
        assert ids(path) == ["first"]
        assert ledger.append(decision("second")).id == "second"  # sent again, it is written
        assert ids(path) == ["first", "second"]


# --- once, and taken back ---------------------------------------------------------------------------------------------


def test_a_decision_that_is_sent_again_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with Ledger.open(path) as ledger:
        first = ledger.append(decision("a"))
        assert ledger.append(decision("a", verdict=False)) == first
    with Ledger.open(path) as ledger:  # known after a restart as well
        assert ledger.append(decision("a", verdict=False)) == first
    assert len(read_all(path)) == 1


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with Ledger.open(path) as ledger:

        def work(name: int) -> None:
            for number in range(20):
                ledger.append(decision(f"{number}", annotator=str(name)))  # the same ids from all of them
                ledger.append(decision(f"{name}-{number}"))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [one.id for one in read_all(path)]
    assert len(found) == len(set(found)) == 20 + 6 * 20


def test_undo_is_a_line_and_can_be_undone(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with Ledger.open(path) as ledger:
        for id in ("a", "b", "c"):
            ledger.append(decision(id))
        undo = ledger.void("b", "ann")
        assert ids(path) == ["a", "c"]
        ledger.void(undo.id)
        assert ids(path) == ["a", "b", "c"]
        before = path.read_bytes()
        ledger.append(decision("a2", verdict=False, voids="a"))  # a correction: takes back and answers
        assert [(one.id, one.verdict) for one in ledger.effective()] == [("b", True), ("c", True), ("a2", False)]
        assert path.read_bytes().startswith(before)  # no line was rewritten
        ledger.void("a2")
        assert ids(path) == ["a", "b", "c"]
        with pytest.raises(InputError, match="has no decision 'x'"):
            ledger.void("x")
    assert effective(read_all(path)) == read_ledger(path)


# --- one writer -------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_where_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with Ledger.open(path) as first:
        first.append(decision("a"))
        with pytest.raises(LedgerInUse, match=f"process {os.getpid()}"):
            Ledger.open(path)
        first.announce("http://127.0.0.1:8500")
        with pytest.raises(LedgerInUse, match=r"at http://127\.0\.0\.1:8500") as raised:
            Ledger.open(path, "http://127.0.0.1:9999")
        assert raised.value.address == "http://127.0.0.1:8500"
        assert "go on at http://127.0.0.1:8500" in str(raised.value)
        assert ids(path) == ["a"]  # readers need no lock
    with Ledger.open(path) as second:
        second.append(decision("b"))
    assert ids(path) == ["a", "b"]


def test_a_killed_writer_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    code = WRITER.replace("for line in sys.stdin", "print('open', flush=True)\n    for line in sys.stdin")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(LedgerInUse, match=f"process {writer.pid}"):
            Ledger.open(path)
        writer.kill()
    Ledger.open(path).close()


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "d.jsonl:2 cannot be read"),
        ("[]", "not a decision"),
        ('{"item": "x"}', "not a decision"),
        ('{"id": "x", "version": 2}', "format 2, expected at most 1"),
        ('{"id": "x", "version": "1"}', "format '1'"),
        ('{"id": "x", "choice": true}', "choice is True, expected a place or null"),
        ('{"id": "x", "choice": "1"}', "choice is 1"),
        ('{"id": "x", "shown": 3}', "shown is 3, expected a list of places"),
        ('{"id": "x", "shown": [0, "a"]}', "shown is"),
        ('{"id": "x", "order": [0, 1]}', "order is"),
        ('{"id": "x", "seconds": NaN}', "seconds is nan"),
        ('{"id": "x", "verdict": 1}', "verdict is 1, expected true, false or null"),
        ('{"id": "x", "annotator": null}', "annotator is None, expected text"),
        ("\\u0000\\u0000", "cannot be read"),
    ],
)
def test_a_line_that_is_no_decision_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "a", "verdict": true}\n' + line.replace("\\u0000", "\0") + '\n{"id": "b"}\n')
    for open_it in (read_ledger, Ledger.open):
        with pytest.raises(InputError, match=message):
            open_it(path)
    assert path.read_text().count("\n") == 3  # nothing of it was changed


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "d.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot write"):
            Ledger.open(path)


def test_what_a_newer_page_adds_is_left_out_and_a_lone_surrogate_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with Ledger.open(path) as ledger:
        ledger.append(decision("a", note="\ud800 \u202e ü"))
    assert read_ledger(path)[0].note == "\ud800 \u202e ü"
    assert Decision.from_json({"id": "a", "mood": "fine"}) == Decision("a")


def test_no_file_is_no_decision(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "none.jsonl") == []
