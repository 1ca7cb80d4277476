"""The program of a process of the pool: it loads a handler, answers requests with it, and ends with its parent.

It is started as a script, by path: it imports what the handler imports, and nothing of ours that the handler does not.
There are two processes of it: the worker, which does that, and above it a guardian, which ends with the worker all that
the worker has started.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import os
import pickle
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
IMPORTING = -1  # said in the place of a row's number
SAY_EVERY_S = 0.5


class Channel:
    """The pipe to the parent; handlers may answer from several coroutines, the importer speaks from any thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()

    def send(self, i: int | str, message: Any) -> None:
        with self.lock:  # two messages at once would be torn
            self.connection.send((i, message))

    def receive(self) -> Any:
        return pickle.loads(self.connection.recv_bytes())


class ParentModules(importlib.abc.MetaPathFinder):
    """Finds the modules that the parent imported from a file in place (`./reward.py:f`), under the names they have
    there: a reward pickles as such a name, which no path leads to.

    It stands first, so it is asked for every module that is not imported yet, and can say that an import goes on.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.channel: Channel | None = None
        self.said_at = 0.0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        # Seldom, since torch alone is two thousand modules, but more often than the parent's patience with an import.
        if self.channel is not None and time.monotonic() - self.said_at > SAY_EVERY_S:
            self.said_at = time.monotonic()
            self.channel.send(IMPORTING, None)
        file = self.files.get(name)
        return importlib.util.spec_from_file_location(name, file) if file else None


def main(channel_fd: int, lifeline_fd: int) -> None:
    adopt, die_with_parent = _process_controls()
    adopt()
    worker = (
        os.fork()
    )  # before anything is imported: the guardian stays small, and has no thread that a fork would tear
    if worker:
        os.close(channel_fd)  # only the worker's end counts: it is how the parent learns of the worker's death
        watch_over(worker, lifeline_fd)
    os.close(lifeline_fd)
    die_with_parent()
    channel = Channel(Connection(channel_fd))
    setup = channel.receive()
    sys.path[:] = setup["path"]
    finder = ParentModules(setup["files"])
    sys.meta_path.insert(0, finder)
    try:
        handle = pickle.loads(setup["handler"])()
    except BaseException as error:  # told to the parent, SystemExit of a script without `__main__` guard too
        channel.send("broken", f"{type(error).__name__}: {error}")
        return
    channel.send("ready", "")
    if setup["reports_imports"]:
        finder.channel = channel  # not before: the time to load has a limit of its own
    with contextlib.suppress(EOFError):  # the parent closed the pool
        while True:
            rows, timeout_s = channel.receive()
            handle(rows, timeout_s, channel.send)


def watch_over(worker: int, lifeline_fd: int) -> NoReturn:
    """End the worker when the parent has ended or gives it up; when it has ended, end all that it started, as it did.

    What a handler starts may leave the group and the session (`setsid`) and lose its own parent. Its next one is then
    the guardian, so that nothing is left that nobody would find. The worker itself could not do this: it may crash, or
    be busy in C code that holds the interpreter's lock.
    """
    died, dies = os.pipe()
    os.set_blocking(dies, False)
    signal.set_wakeup_fd(dies)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # without a handler nothing is written
    pid = status = 0
    while not pid:
        pid, status = os.waitpid(worker, os.WNOHANG)  # first: it may have died before the handler was there
        if not pid and lifeline_fd in select.select([lifeline_fd, died], [], [])[0]:
            os.kill(worker, signal.SIGKILL)
            pid, status = os.waitpid(worker, 0)
        elif not pid:
            os.read(died, 512)
    with contextlib.suppress(ChildProcessError):  # none is left: those of a process that is killed come here, in turn
        while True:
            for orphan in children_of(os.getpid()):
                os.kill(orphan, signal.SIGKILL)
            os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker has left its core, if one was wanted
    with contextlib.suppress(OSError):  # SIGKILL has no handler to take away
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(1)


def children_of(parent: int) -> list[int]:
    """Return the direct children of a process, zombies too; none where there is no `/proc`."""
    from pathlib import Path  # not needed while the worker lives, whose start is waited for

    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):  # it has ended since
            # the second field is a name in brackets, which may hold anything
            if int(file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]) == parent:
                found.append(int(file.parent.name))
    return found


def _process_controls() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what makes this process the one that orphans below it come to, and what lets it die with its parent.

    Where there is no `prctl` (macOS) both do nothing: then what leaves the group of a worker is not found.
    """
    import ctypes  # before the fork, and once

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return (lambda: None), (lambda: None)
    return (lambda: prctl(PR_SET_CHILD_SUBREAPER, 1)), (lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
