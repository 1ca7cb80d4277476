"""The file of decisions: JSON lines, only ever appended to. No paper.

1. A decision is on disk (written, flushed, fsync) before `append` returns: what was acknowledged survives any kill.
2. A decision that is sent again, since its answer was lost on the way, is written once: it is known by its id.
3. Nothing is rewritten. A decision is taken back by a later line that names it, and that line by another one.
4. One process writes, held by `flock` on a file beside it; who comes second is told where the first one is. Readers
   take no lock and leave out a last line that is still being written.
5. What a kill left behind the last whole line was never acknowledged: it is moved to `NAME.torn`, and told.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO

from posttrain_plugins.decisions.item import Decision
from posttrain_plugins.errors import InputError, PosttrainError

__all__ = ["Ledger", "LedgerInUse", "effective", "read_all", "read_ledger"]


class LedgerInUse(InputError):
    """Another process writes this ledger.

    Args:
        path: the ledger.
        address: where the first one is reached, as it announced itself; empty if it did not.
        writer: who it is, such as `process 4711 on host`.
    """

    def __init__(self, path: Path, address: str, writer: str) -> None:
        where = f" at {address}" if address else ""
        hint = f"go on at {address}" if address else "wait until it ends, or name another file"
        super().__init__(f"{path} is being written by {writer or 'another process'}{where}", hint=hint)
        self.address = address


class Ledger:
    """A ledger opened by its one writer; use as a context manager. Threads may share it.

    `torn_bytes` says how much stood behind the last whole line when it was opened, 0 for a ledger that was closed well.
    """

    def __init__(self, path: Path, decisions: Sequence[Decision], torn_bytes: int, file: IO[bytes], lock: IO[str]):
        self.path = path
        self.torn_bytes = torn_bytes
        self._decisions = list(decisions)
        self._by_id = {decision.id: decision for decision in decisions}
        self._file: IO[bytes] | None = file
        self._lock = lock
        self._end = file.seek(0, os.SEEK_END)
        self._thread_lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, address: str = "") -> Ledger:
        """Open a ledger to write, made where it is not there.

        Args:
            path: the JSONL file.
            address: where this writer is reached, told to whoever comes second; see `announce`.

        Raises:
            LedgerInUse: another process has it open.
            InputError: a line is no decision, or the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f"{path.name}.lock").open("a+", encoding="utf-8")
        except OSError as cause:
            raise InputError(
                f"cannot write {path}: {cause.strerror}", hint="name a file in a folder of yours"
            ) from cause
        try:
            # The kernel frees it when the process dies, however it dies; a file with a pid would stay behind.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            with lock:
                address, writer = _announced(lock)
            raise LedgerInUse(path, address, writer) from cause
        try:
            ledger = cls(path, *_repaired(path), lock)
        except BaseException:
            lock.close()
            raise
        ledger.announce(address)
        return ledger

    def announce(self, address: str) -> None:
        """Say where this writer is reached, once that is known."""
        self._lock.seek(0)
        self._lock.truncate()
        about = {"address": address, "writer": f"process {os.getpid()} on {socket.gethostname()}"}
        self._lock.write(json.dumps(about))
        self._lock.flush()

    def append(self, decision: Decision) -> Decision:
        """Write a decision, and return it once it is on disk.

        Returns:
            What the ledger holds under this id: of one that was sent before, what was written then.

        Raises:
            InputError: it takes back a decision that the ledger has not.
            PosttrainError: the disk is full or fails; nothing of the decision is in the ledger.
        """
        with self._thread_lock:
            known = self._by_id.get(decision.id)
            if known is not None:
                return known
            if decision.voids is not None and decision.voids not in self._by_id:
                raise InputError(f"{self.path} has no decision {decision.voids!r} that could be taken back")
            decision = decision if decision.at else replace(decision, at=time.time())
            self._write(json.dumps(decision.to_json(), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            self._decisions.append(decision)
            self._by_id[decision.id] = decision
            return decision

    def void(self, id: str, annotator: str = "") -> Decision:
        """Take back a decision by a line that names it; to take back that line brings the decision back.

        Raises:
            InputError: the ledger has no such decision.
        """
        return self.append(Decision(str(uuid.uuid4()), annotator=annotator, voids=id))

    def find(self, id: str) -> Decision | None:
        """Return the line of this id, also one that is taken back."""
        with self._thread_lock:
            return self._by_id.get(id)

    def all(self) -> list[Decision]:
        """Return every line, also those that are taken back and those that take back."""
        with self._thread_lock:
            return list(self._decisions)

    def effective(self) -> list[Decision]:
        """Return the decisions that stand, in the order in which they were made."""
        return effective(self.all())

    def close(self) -> None:
        """Close the file and let another process write it."""
        with self._thread_lock:
            if self._file is not None:
                self._file.close()
                self._lock.close()
                self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        if self._file is None:
            raise PosttrainError(f"{self.path} is closed")
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as cause:
            # Half a line may stand there, or a whole one of which nobody knows whether it would survive: the sender is
            # told that it failed, and the next line must not go on from it. Where not even that can be undone, nothing
            # is written any more, and the next `open` repairs the file.
            try:
                os.ftruncate(self._file.fileno(), self._end)
            except OSError:
                self._file = None
            raise PosttrainError(
                f"a decision could not be written to {self.path}: {cause.strerror}",
                hint="make room on the disk and send it again; what was answered before stands",
            ) from cause
        self._end += len(line)


def read_ledger(path: Path) -> list[Decision]:
    """Return the decisions that stand, in the order in which they were made; none where there is no file.

    Takes no lock: it may be read while another process writes it.

    Raises:
        InputError: a line is no decision.
    """
    return effective(read_all(path))


def read_all(path: Path) -> list[Decision]:
    """Return every whole line of a ledger, also those that are taken back and those that take back.

    Raises:
        InputError: a line is no decision.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as cause:
        raise InputError(f"cannot read {path}: {cause.strerror}") from cause
    return _parsed(path, content[: content.rfind(b"\n") + 1])


def effective(decisions: Sequence[Decision]) -> list[Decision]:
    """Return those that decide something and that no effective later one takes back; an id counts once.

    What corrects a correction takes back what that one took back, too; a correction that is only taken back leaves it.
    """
    voided: set[str] = set()
    replaced: set[str] = set()
    standing: dict[str, Decision] = {}
    # from the end: whether a line takes another one back is known once all that could take it back have been seen
    for decision in reversed(decisions):
        if decision.voids is not None and (decision.id not in voided or decision.id in replaced):
            voided.add(decision.voids)
            replaced |= {decision.voids} if decision.is_answer else set()
        if decision.is_answer and decision.id not in voided:
            standing[decision.id] = decision
    return list(reversed(standing.values()))


def _parsed(path: Path, content: bytes) -> list[Decision]:
    decisions = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            decisions.append(Decision.from_json(json.loads(line.decode("utf-8", "surrogatepass"))))
        except (ValueError, InputError) as cause:
            hint = (
                cause.hint if isinstance(cause, InputError) else None
            ) or "move the line out of the file and look at it"
            raise InputError(f"{path}:{number} cannot be read: {cause}", hint=hint) from cause
    return decisions


def _repaired(path: Path) -> tuple[list[Decision], int, IO[bytes]]:
    """Read a ledger that this process may write, without what a kill left behind its last whole line."""
    try:
        is_new = not path.exists()
        content = b"" if is_new else path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        decisions = _parsed(path, whole)
        torn = content[len(whole) :]
        if torn:
            # kept, though nobody was told that it was written: a person made it
            with path.with_name(f"{path.name}.torn").open("ab") as rest:
                rest.write(torn + b"\n")
            os.truncate(path, len(whole))
        file = path.open("ab")
        # Of a new file the folder's entry counts too: a decision in a file without a name is lost.
        for place in (path, path.parent) if is_new or torn else ():
            number = os.open(place, os.O_RDONLY)
            os.fsync(number)
            os.close(number)
    except OSError as cause:
        raise InputError(f"cannot write {path}: {cause.strerror}", hint="name a file in a folder of yours") from cause
    return decisions, len(torn), file


def _announced(lock: IO[str]) -> tuple[str, str]:
    lock.seek(0)
    try:
        about = json.loads(lock.read())
        return str(about["address"]), str(about["writer"])
    except (ValueError, KeyError, TypeError):  # the first one is just about to write it
        return "", ""
