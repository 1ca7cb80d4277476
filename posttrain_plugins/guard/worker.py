"""The process that scores: started as a script, it imports the plugin and what the plugin imports, nothing else.

It ends with its parent: a pipe that only the parent holds tells of its end, and a limit on CPU time ends what hangs in
C code and would never look at that pipe.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import os
import pickle
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

PRELOADED = ("resource",) if sys.platform != "win32" else ()
SPARE_CPU_S = 60
IMPORTING = -1  # said in the place of a row's number
SAY_EVERY_S = 0.5


class _Channel:
    """The pipe to the parent, one word at a time."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()
        self.said_at = 0.0

    def say(self, word: Any) -> None:
        with self.lock:
            self.connection.send(word)

    def hear(self) -> Any:
        return pickle.loads(self.connection.recv_bytes())

    def say_importing(self) -> None:
        if time.monotonic() - self.said_at > SAY_EVERY_S:
            self.said_at = time.monotonic()
            self.say((IMPORTING, None))


class _Files(importlib.abc.MetaPathFinder):
    """Finds the modules that the parent imported from a file in place, under the names that they have there.

    It is asked of every module that is not imported yet, so it also tells that an import goes on.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.say_importing: Any = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if self.say_importing is not None:
            self.say_importing()
        file = self.files.get(name)
        return importlib.util.spec_from_file_location(name, file) if file else None


def main(channel_fd: int, lifeline_fd: int) -> None:
    threading.Thread(target=_end_with_parent, args=(lifeline_fd,), daemon=True).start()
    channel = _Channel(Connection(channel_fd))
    setup = channel.hear()
    sys.path[:] = setup["path"]
    finder = _Files(setup["files"])
    sys.meta_path.insert(0, finder)
    try:
        reward = pickle.loads(setup["reward"])
        for name in ("posttrain_plugins.guard.outcome", *PRELOADED):
            importlib.import_module(name)
    except BaseException as error:  # told to the parent
        channel.say(("broken", f"{type(error).__name__}: {error}"))
        return
    channel.say(("ready",))
    finder.say_importing = channel.say_importing
    loop: list[Any] = []  # one for all rows, made when it is needed
    with contextlib.suppress(EOFError):
        while True:
            _answer(channel, reward, loop, *channel.hear())


def _answer(channel: _Channel, reward: Any, loop: list[Any], method: Any, timeout_s: Any, rows: list[Any]) -> None:
    """Scores rows one after the other, or all at once where the reward is asynchronous; each is told when done."""
    from posttrain_plugins.errors import InputError
    from posttrain_plugins.guard import outcome

    async def one(i: int, row: Any) -> None:
        try:
            channel.say((i, await outcome.score_async(reward, method, row, timeout_s)))
        except InputError as error:
            channel.say((i, (error.message, error.hint)))

    _limit_cpu(timeout_s)
    if outcome.is_async(outcome.call_of(reward, method)):
        import asyncio

        loop.extend([] if loop else [asyncio.new_event_loop()])
        loop[0].run_until_complete(_all([one(i, row) for i, row in enumerate(rows)]))
        return
    for i, row in enumerate(rows):
        try:
            channel.say((i, outcome.score(reward, method, row)))
        except InputError as error:
            channel.say((i, (error.message, error.hint)))


async def _all(coroutines: list[Any]) -> None:
    import asyncio

    await asyncio.gather(*coroutines)


def _limit_cpu(timeout_s: float | None) -> None:
    if timeout_s is None:
        return
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime + timeout_s) + SPARE_CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _end_with_parent(lifeline_fd: int) -> None:
    os.read(lifeline_fd, 1)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
