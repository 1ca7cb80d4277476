"""The program of a process of the pool: it loads a handler, answers requests with it, and ends with its parent.

It is started as a script, by path: it imports what the handler imports, and nothing of ours that the handler does not.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import os
import pickle
import resource
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

SPARE_CPU_S = 60
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
    def end_with_parent() -> None:
        os.read(lifeline_fd, 1)  # nobody writes: it returns when the parent, however it ended, holds its end no more
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
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
            if timeout_s is not None:
                limit_cpu(timeout_s)
            handle(rows, timeout_s, channel.send)


def limit_cpu(timeout_s: float) -> None:
    """Bound the CPU time of the next request well above its limit, which the parent keeps.

    Code in C that holds the interpreter's lock would keep `end_with_parent` from running: where the parent was killed,
    the kernel is the only one left to end it.
    """
    with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime + timeout_s) + SPARE_CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
