"""One process makes a stage: `flock` on this machine, and a sign of life that other machines see. No paper.

`flock` is free the moment its process dies, however it dies, but over NFS and other shared storage it may hold on one
machine alone, or not be there at all. So beside it lies `.<stage>-<key12>.owner.lock`: who holds the stage (host,
machine, pid, when), touched every `BEAT_S` seconds. Who finds one of another machine watches it for at most `STALE_S`
seconds, by the clock of this machine alone: clocks of two machines need not agree, and one may go back. If it was
touched meanwhile, its owner is at work, and this run is refused; if not, that machine is gone, and the stage is taken
over. An owner that only slept finds another's name in its file, and ends before it writes anything more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from posttrain_plugins.errors import StageFailed
from posttrain_plugins.record.events import born

__all__ = ["Lock", "hold"]

BEAT_S = 5.0
STALE_S = 60.0
LOOK_S = 0.2
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Lock:
    """A stage that this process holds.

    Args:
        stage: its id.
        owner: the file with the sign of life.
        token: of this process and this hold, as it stands in the file.
    """

    def __init__(self, stage: str, owner: Path, token: str) -> None:
        self.stage = stage
        self.owner = owner
        self.token = token
        self.is_released = threading.Event()
        self.checked_at = time.monotonic()

    def check(self, every_s: float = 0.0) -> None:
        """Do nothing while this process holds the stage.

        Args:
            every_s: look into the file only if the last look is so old.

        Raises:
            StageFailed: another machine took it over, since this one gave no sign for too long.
        """
        if time.monotonic() - self.checked_at < every_s:
            return
        self.checked_at = time.monotonic()
        found = _read(self.owner)
        if found is not None and found.get("token") != self.token:
            raise StageFailed(
                f"stage '{self.stage}' was taken over by {_who(found)}: this process had given no sign of life",
                hint="let that one end; the same command then finds its result",
            )

    def beat(self) -> None:
        """Touch the file until it is released or another's; a disk that refuses for a while is tried again."""
        while not self.is_released.wait(BEAT_S):
            with contextlib.suppress(OSError):
                found = _read(self.owner)
                if found is not None and found.get("token") != self.token:
                    return
                # the server's own time where the file system has one; on a full disk, too: nothing is written
                os.utime(self.owner)

    def release(self) -> None:
        """Take the file away, if it is still this process's."""
        self.is_released.set()
        found = _read(self.owner)
        if found is not None and found.get("token") == self.token:
            self.owner.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(folder: Path, name: str, stage: str, note: Callable[[str], None]) -> Iterator[Lock]:
    """Hold a stage for this process alone.

    Args:
        folder: of the recipe's runs.
        name: of the stage and its key, which the files are called after.
        stage: its id, for errors.
        note: is told who is watched, and what is taken over.

    Raises:
        StageFailed: another process is at it.
    """
    owner = folder / f".{name}.owner.lock"
    with (folder / f".{name}.lock").open("a+b") as handle:
        is_locked = _flock(handle, stage, owner)
        found = _read(owner)
        if found is not None and not (is_locked and found.get("machine") == _machine()):
            _watch(owner, found, stage, note)
        lock = _claim(owner, stage, found)
        threading.Thread(target=lock.beat, name=f"beat {stage}", daemon=True).start()
        try:
            yield lock
        finally:
            lock.release()


def _flock(handle: BinaryIO, stage: str, owner: Path) -> bool:
    """Lock the file; False where this file system has no locks.

    Raises:
        StageFailed: another process holds it.
    """
    try:
        # The kernel frees it when the process dies; a file with a pid alone would stay behind.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        if cause.errno in BUSY:
            raise _refused(stage, _read(owner)) from cause
        return False
    return True


def _watch(owner: Path, found: dict[str, Any], stage: str, note: Callable[[str], None]) -> None:
    """Return when the owner of another machine has given no sign of life for `STALE_S` seconds.

    Raises:
        StageFailed: it is alive.
    """
    if found.get("machine") == _machine() and not _is_alive(found):  # no `flock` here, but its process can be asked for
        return
    note(f"{_who(found)} holds it: is it alive? At most {STALE_S:g} s")
    before, began = _sign(owner), time.monotonic()
    while (now := _sign(owner)) == before and time.monotonic() - began < STALE_S:
        time.sleep(LOOK_S)
    if now is None:  # it has just ended
        return
    if now != before:
        raise _refused(stage, _read(owner))
    note(f"taken over from {_who(found)}, which gave no sign of life for {STALE_S:g} s")


def _claim(owner: Path, stage: str, dead: dict[str, Any] | None) -> Lock:
    """Write this process's name into the file, which then is this process's alone.

    Args:
        owner: the file.
        stage: its id, for errors.
        dead: what the file of a dead owner says, to be replaced; None where there was none.

    Raises:
        StageFailed: another machine was faster.
    """
    token = uuid.uuid4().hex
    now = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "born": born(os.getpid())}
    try:
        if dead is not None:
            _put_aside(owner, dead, token)
        with owner.open("x", encoding="utf-8") as stream:  # of two machines, NFS too lets one alone make it
            stream.write(json.dumps({**who, "started": now, "token": token}) + "\n")
    except FileExistsError as cause:
        raise _refused(stage, _read(owner)) from cause
    return Lock(stage, owner, token)


def _put_aside(owner: Path, dead: dict[str, Any], token: str) -> None:
    """Take a dead owner's file away, and no other: two machines may find it dead at once.

    Raises:
        FileExistsError: another machine has replaced it already.
    """
    aside = owner.with_name(f"{owner.name}.{token}")
    with contextlib.suppress(FileNotFoundError):
        owner.rename(aside)
        is_dead_ones = _read(aside) == dead
        if not is_dead_ones:
            os.link(aside, owner)
        aside.unlink()
        if not is_dead_ones:
            raise FileExistsError(owner)


def _read(owner: Path) -> dict[str, Any] | None:
    """Return what the file says, empty where it is cut; None where there is none."""
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    except OSError:
        return None
    return found if isinstance(found, dict) else {}


def _sign(owner: Path) -> tuple[int, int, bytes] | None:
    """Return what changes with every sign of life; opened anew, since NFS asks the server only then."""
    try:
        with owner.open("rb") as stream:
            status = os.fstat(stream.fileno())
            return status.st_mtime_ns, status.st_ino, stream.read()
    except OSError:
        return None


def _is_alive(found: dict[str, Any]) -> bool:
    """Return whether a process of this machine still runs; its number alone may be another's by now."""
    began = born(int(found.get("pid") or 0))
    return began is not None and began == found.get("born")


def _machine() -> str:
    """Return what tells this machine from another of the same name, until it is started again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return socket.gethostname()


def _who(found: dict[str, Any]) -> str:
    if not found.get("pid"):
        return "a process without a name"
    return f"process {found['pid']} on {found.get('host')}, since {found.get('started')}"


def _refused(stage: str, found: dict[str, Any] | None) -> StageFailed:
    who = f": {_who(found)}" if found else ""
    return StageFailed(f"stage '{stage}' is being made by another process{who}", hint="wait for it, then run again")
