"""Worker processes that can be killed: each scores one completion at a time, and is replaced when it hangs or dies.

They are started as programs of their own, not forked: a fork of a process in which torch has threads may hang. An
asynchronous reward gets many completions at once; those that a dying worker leaves behind are tried again one by one,
so that only the one that killed it is counted.

A limit is for scoring. A plugin may import what is heavy at its first call: while a worker imports, its time is not
counted, but for a limit on each import.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from multiprocessing.connection import Pipe
from typing import Any

from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.guard import worker
from posttrain_plugins.guard.outcome import Method, Outcome, call_of, is_async, late
from posttrain_plugins.plugins.registry import FILE_MODULE

__all__ = ["Pool"]

START_LIMIT_S = 120.0  # importing the plugin, on a machine that is busy
IMPORT_LIMIT_S = 10.0  # for what one completion makes the plugin import, since the last import began
LOOK_S = 0.5  # how often a silent worker is looked at
GRACE_S = 1.0  # a worker cancels a coroutine by itself; this ends one that blocks
BUNDLE = 64  # completions that an asynchronous reward judges at once in one worker


class Pool:
    """Workers for one reward. Threads hand them their tasks; a worker starts with its first task.

    Args:
        reward: what the workers load, once each.
        num_workers: processes at most.
        timeout_s: for one completion; None waits for ever.

    Raises:
        InputError: the reward cannot be pickled.
    """

    def __init__(self, reward: Any, num_workers: int, timeout_s: float | None) -> None:
        self.reward, self.num_workers, self.timeout_s = reward, num_workers, timeout_s
        self.setup = _setup(reward)
        self.tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.running: set[_Worker] = set()
        self.pid = os.getpid()
        self.close = weakref.finalize(self, _close, self.tasks, self.running, self.threads, self.pid)

    def score(self, method: Method, rows: Sequence[Any]) -> list[Future[Outcome]]:
        """What each row's call will give, from whichever worker is free."""
        futures: list[Future[Outcome]] = [Future() for _ in rows]
        size, grace_s = 1, 0.0
        if is_async(call_of(self.reward, method)):
            size, grace_s = max(1, min(BUNDLE, -(-len(rows) // self.num_workers))), GRACE_S
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            self.tasks.put(_Task(method, list(rows[part]), futures[part], self.timeout_s, grace_s))
        for _ in range(min(self.num_workers, len(rows)) - len(self.threads)):
            thread = threading.Thread(target=_serve, args=(self.tasks, self.setup, self.running), daemon=True)
            self.threads.append(thread)
            thread.start()
        return futures


@dataclass(frozen=True)
class _Task:
    method: Method
    rows: list[Any]
    futures: list[Future[Outcome]]
    timeout_s: float | None
    grace_s: float

    def alone(self) -> list[_Task]:
        """A task for each row that has no answer."""
        pairs = zip(self.rows, self.futures, strict=True)
        return [replace(self, rows=[row], futures=[future]) for row, future in pairs if not future.done()]


def _setup(reward: Any) -> bytes:
    files = {
        name: str(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith(FILE_MODULE) and getattr(module, "__file__", None)
    }
    try:
        pickled = pickle.dumps(reward)
    except Exception as cause:  # whatever a plugin holds
        raise InputError(
            f"the reward cannot be isolated, it does not pickle: {type(cause).__name__}: {cause}",
            hint="define it at the top of a module: no lambda, no function inside a function, no open file",
        ) from cause
    return pickle.dumps({"path": list(sys.path), "files": files, "reward": pickled})


def _serve(tasks: queue.SimpleQueue[_Task | None], setup: bytes, running: set[_Worker]) -> None:
    """One worker's thread: a task at a time, and another worker after one that died.

    A reward that killed a worker will do so again, so from then on the next one starts while this one works.
    """
    own: _Worker | None = None
    spare: _Worker | None = None
    while (task := tasks.get()) is not None:
        if all(future.cancelled() for future in task.futures):
            continue
        try:
            own = own or _Worker(setup, running)
            reason = own.ask(task)
        except BaseException as error:  # told to whom it may concern, in its own thread
            for future in task.futures:
                _resolve(future, error)
            reason = Outcome("error")
        if reason is not None and own is not None:
            own.kill()
            own, spare = spare, _spare(setup, running)
        if reason is not None and len(task.rows) == 1:
            _resolve(task.futures[0], reason)
        elif reason is not None:
            for again in task.alone():
                tasks.put(again)
    for one in (own, spare):
        if one is not None:
            one.kill()


def _spare(setup: bytes, running: set[_Worker]) -> _Worker | None:
    with contextlib.suppress(OSError):  # no memory, too many processes: the next task tells
        return _Worker(setup, running)
    return None


def _resolve(future: Future[Outcome], what: Outcome | BaseException) -> None:
    """Answers a future that nobody has answered or given up."""
    with contextlib.suppress(Exception):  # InvalidStateError; cancelled meanwhile
        future.set_exception(what) if isinstance(what, BaseException) else future.set_result(what)


def _close(tasks: Any, running: set[_Worker], threads: list[threading.Thread], pid: int) -> None:
    if os.getpid() != pid:  # a forked child: they are its parent's
        return
    for _ in threads:
        tasks.put(None)
    for one in list(running):
        one.kill()


class _Worker:
    """A process that loads the reward, in a session of its own so that what it starts dies with it."""

    def __init__(self, setup: bytes, running: set[_Worker]) -> None:
        self.running = running
        self.channel, theirs = Pipe()
        ends, self.lifeline = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-P", worker.__file__, str(theirs.fileno()), str(ends)],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(theirs.fileno(), ends),
            start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        theirs.close()
        os.close(ends)
        running.add(self)
        self.is_loaded = False
        self._send(setup)

    def ask(self, task: _Task) -> Outcome | None:
        """Has the rows scored; gives why the worker must go, if it must.

        Raises:
            PluginBroken: the reward cannot be loaded there.
        """
        if not self.is_loaded:
            self._wait_for_load()
        if not self._send(pickle.dumps((task.method, task.timeout_s, task.rows))):
            return self._died()
        began = time.monotonic()
        deadline = None if task.timeout_s is None else began + task.timeout_s + task.grace_s
        left = len(task.rows)
        while left:
            if not self._is_heard(deadline):
                return self._died() if self.process.poll() is not None else late(task.timeout_s)
            try:
                i, what = self.channel.recv()
            except (EOFError, OSError):
                return self._died()
            if i == worker.IMPORTING:
                later = min(time.monotonic() + IMPORT_LIMIT_S, began + START_LIMIT_S)
                deadline = deadline and max(deadline, later)
                continue
            _resolve(task.futures[i], InputError(*what) if isinstance(what, tuple) else what)
            left -= 1
        return None

    def kill(self) -> None:
        """Ends it and all that it started."""
        try:
            self.running.remove(self)
        except KeyError:  # another thread has
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.channel.close()
        os.close(self.lifeline)

    def _wait_for_load(self) -> None:
        said: Any = ("silent", f"it has not started within {START_LIMIT_S:g} s")
        if self._is_heard(time.monotonic() + START_LIMIT_S):
            with contextlib.suppress(EOFError, OSError):
                said = self.channel.recv()
        self.is_loaded = said[0] == "ready"
        if not self.is_loaded:
            raise PluginBroken(
                f"the reward cannot be loaded in a process of its own: {said[1]}",
                hint="it must be importable there: define it in a module or a file, not in the script that runs",
            )

    def _send(self, message: bytes) -> bool:
        try:
            self.channel.send_bytes(message)
        except OSError:
            return False
        return True

    def _is_heard(self, deadline: float | None) -> bool:
        """Waits for a word; False at the deadline, and when the process is gone without one."""
        while True:
            left = LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic())
            if self.channel.poll(max(left, 0.0)):
                return True
            if self.process.poll() is not None:
                return self.channel.poll(0)
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _died(self) -> Outcome:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=LOOK_S)
        code = self.process.poll()
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return Outcome("error", detail=f"the process died: {how}")
