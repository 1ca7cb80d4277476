"""A pool of processes that can be killed: each answers one request at a time, and is replaced when it hangs or dies.

They are started as programs of their own, not forked: a fork of a process in which torch has threads may hang. A
process starts with its first request and stays. A request may hold several rows, which are answered one by one; those
that a dying process leaves behind are asked again alone, so that only the one that killed it is lost.

A limit is for answering. A handler may import what is heavy at its first request: where the pool has an
`import_limit_s`, a process that imports is given more time.
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Pipe
from typing import Any, Literal, NamedTuple

from posttrain_plugins.processes import child

__all__ = ["ProcessFailure", "ProcessPool"]

START_LIMIT_S = 120.0  # loading the handler, on a machine that is busy
GUARDIAN_LIMIT_S = 5.0  # until it has ended all, on a machine that is busy
LOOK_S = 0.5  # how often it is asked whether a silent process still lives


class ProcessFailure(NamedTuple):
    """Why a row has no answer.

    Args:
        kind: `late`, the process was killed at its limit; `died`; `broken`, it could not load the handler; `silent`, it
            said nothing while it started.
        detail: how it died, what the handler raised, or why it said nothing.
    """

    kind: Literal["late", "died", "broken", "silent"]
    detail: str = ""


class ProcessPool:
    """Processes with one handler. Each has a thread here, which hands it requests and keeps the time.

    What is pending when the pool is closed is answered by new processes first. A forked child has a pool of the same
    kind, with processes of its own.

    Args:
        handler: a pickled function without arguments, called once in each process, that returns what answers there:
            `answer(rows, timeout_s, reply)`, which calls `reply(i, answer)` once for each row.
        num_workers: processes at most.
        lost: what stands for the answer of a row that has none; an exception is raised to whoever waits for it.
        files: modules that the handler needs, and that only this process finds: name -> file.
        import_limit_s: a process that imports gets so much time more from the last import on; None counts imports as
            any other time.
        keeps_spare: once a process had to be killed, keep a further one that has loaded the handler already.
    """

    def __init__(
        self,
        handler: bytes,
        num_workers: int,
        lost: Callable[[ProcessFailure], Any] = lambda failure: failure,
        *,
        files: Mapping[str, str] | None = None,
        import_limit_s: float | None = None,
        keeps_spare: bool = False,
    ) -> None:
        self.num_workers = num_workers
        setup = {
            "path": list(sys.path),
            "files": dict(files or {}),
            "handler": handler,
            "reports_imports": import_limit_s is not None,
        }
        self._state = _State(pickle.dumps(setup), lost, import_limit_s, keeps_spare)
        self.close = weakref.finalize(self, self._state.close)

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that are alive now."""
        return [one.process.pid for one in list(self._state.processes)]

    def submit(
        self, rows: Sequence[Any], timeout_s: float | None, *, rows_per_request: int = 1, grace_s: float = 0.0
    ) -> list[Future[Any]]:
        """Ask for an answer to each row, from whichever process is free.

        Args:
            rows: anything that pickles.
            timeout_s: for one request; None waits for ever.
            rows_per_request: how many rows a handler is given at once.
            grace_s: how much later a process is killed, where its handler keeps the limit by itself.
        """
        state = self._state
        futures: list[Future[Any]] = [Future() for _ in rows]
        with state.lock:
            for start in range(0, len(rows), rows_per_request):
                part = slice(start, start + rows_per_request)
                state.requests.put(_Request(list(rows[part]), futures[part], timeout_s, grace_s))
                # As in ThreadPoolExecutor: nobody waits for work, so another thread is worth its process.
                if not state.idle.acquire(blocking=False) and state.num_threads < self.num_workers:
                    state.num_threads += 1
                    threading.Thread(target=state.serve, daemon=True).start()
        return futures


class _Request(NamedTuple):
    rows: list[Any]
    futures: list[Future[Any]]
    timeout_s: float | None
    grace_s: float

    def resolve(self, answer: Any, i: int | None = None) -> None:
        """Answer row i, or all rows that have no answer; a future that was given up meanwhile stays as it is."""
        for future in self.futures if i is None else [self.futures[i]]:
            with contextlib.suppress(Exception):  # InvalidStateError
                future.set_exception(answer) if isinstance(answer, BaseException) else future.set_result(answer)


@dataclass(eq=False)
class _State:
    """What a pool shares with its threads, which do not hold the pool itself: it is closed when its owner drops it."""

    setup: bytes
    lost: Callable[[ProcessFailure], Any]
    import_limit_s: float | None
    keeps_spare: bool
    processes: set[KillableProcess] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.begin()
        _STATES.add(self)

    def begin(self) -> None:
        """Start with no request and no thread."""
        self.lock = threading.Lock()
        self.requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self.idle = threading.Semaphore(0)  # as many as threads wait for a request
        self.num_threads = 0

    def close(self) -> None:
        """End threads and processes."""
        for _ in range(self.num_threads):
            self.requests.put(None)
        for process in list(self.processes):
            process.kill()

    def serve(self) -> None:
        """Run one thread of the pool: a request at a time, and another process after one that had to be killed."""
        own: KillableProcess | None = None
        spare: KillableProcess | None = None
        while True:
            try:
                request = self.requests.get_nowait()
            except queue.Empty:
                self.idle.release()
                request = self.requests.get()
            if request is None:
                break
            if all(future.cancelled() for future in request.futures):
                continue
            try:
                if own is not None and own.process.poll() is not None:  # it died idle: no row's fault
                    own.kill()
                    own = None
                own = own or KillableProcess(self)
                failure = own.ask(request)
            except BaseException as error:  # no memory, too many processes: told to who waits, in its own thread
                request.resolve(error)
                failure = ProcessFailure("died")
            if failure is None:
                continue
            if own is not None:
                own.kill()
                own, spare = spare, None
                # A handler that had a process killed will do so again: from now on the next one loads while this
                # one works.
                with contextlib.suppress(OSError):  # no memory, too many processes: the next request tells
                    spare = KillableProcess(self) if self.keeps_spare else None
            if len(request.rows) == 1 or failure.kind in ("broken", "silent"):
                request.resolve(self.lost(failure))
            else:  # nobody knows which row it was
                for row, future in zip(request.rows, request.futures, strict=True):
                    if not future.done():
                        self.requests.put(request._replace(rows=[row], futures=[future]))
        for process in (own, spare):
            if process is not None:
                process.kill()


class KillableProcess:
    """A process that loads the handler, in a session of its own so that what it starts dies with it."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self.channel, theirs = Pipe()
        ends, self.lifeline = os.pipe()  # there is something to read when this process has ended, or gives that one up
        self.process = subprocess.Popen(
            [sys.executable, "-P", child.__file__, str(theirs.fileno()), str(ends)],  # -P: its folder is no import path
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a handler prints does not stand between the lines of this process's own output
            pass_fds=(theirs.fileno(), ends),
            start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        theirs.close()
        os.close(ends)
        state.processes.add(self)
        self.is_loaded = False
        with contextlib.suppress(OSError):  # it died already, as `ask` will find
            self.channel.send_bytes(state.setup)

    def ask(self, request: _Request) -> ProcessFailure | None:
        """Resolve the futures of a request; return why the process must be killed, if it must."""
        if not self.is_loaded:
            word = self._receive(time.monotonic() + START_LIMIT_S)
            if isinstance(word, ProcessFailure):
                how = (
                    f"it died, {word.detail}"
                    if word.kind == "died"
                    else f"it has not started within {START_LIMIT_S:g} s"
                )
                return ProcessFailure("silent", how)
            if word[0] == "broken":
                return ProcessFailure("broken", word[1])
            self.is_loaded = True
        with contextlib.suppress(OSError):  # a process that died is found by the next line but one
            self.channel.send_bytes(pickle.dumps((request.rows, request.timeout_s)))
        began = time.monotonic()
        deadline = None if request.timeout_s is None else began + request.timeout_s + request.grace_s
        num_pending = len(request.rows)
        while num_pending:
            word = self._receive(deadline)
            if isinstance(word, ProcessFailure):
                return word
            i, answer = word
            if i == child.IMPORTING:
                if deadline is not None and self.state.import_limit_s is not None:
                    later = min(time.monotonic() + self.state.import_limit_s, began + START_LIMIT_S)
                    deadline = max(deadline, later)
                continue
            request.resolve(answer, i)
            num_pending -= 1
        return None

    def kill(self) -> None:
        """End it and all that it started."""
        try:
            self.state.processes.remove(self)
        except KeyError:  # another thread has
            return
        with contextlib.suppress(OSError):  # it has ended
            os.write(self.lifeline, b".")  # the guardian ends the worker, and what left its group
        os.close(self.lifeline)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=GUARDIAN_LIMIT_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()  # no zombie
        self.channel.close()

    def forget(self) -> None:
        """Give it up in a forked child: it is the parent's, and a lifeline held here would let it outlive that one."""
        self.channel.close()
        os.close(self.lifeline)
        self.process.returncode = 0  # not ours to wait for

    def _receive(self, deadline: float | None) -> Any:
        """Return its next word, or a failure: at the deadline, or when it is gone without one."""
        while True:
            is_dead = self.process.poll() is not None  # asked first: what it said before its death is still read
            left_s = LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic())
            try:
                if self.channel.poll(0.0 if is_dead else max(left_s, 0.0)):
                    return self.channel.recv()
            except (EOFError, OSError):
                is_dead = True
            if is_dead:
                with contextlib.suppress(subprocess.TimeoutExpired):  # the pipe's end comes before the exit code
                    self.process.wait(timeout=LOOK_S)
                code = self.process.poll()
                how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
                return ProcessFailure("died", how)
            if deadline is not None and time.monotonic() >= deadline:
                return ProcessFailure("late")


_STATES: weakref.WeakSet[_State] = weakref.WeakSet()


def _begin_in_child() -> None:
    """Begin anew after a fork: the parent's threads are not here, its locks may be held, its processes are not ours."""
    for state in list(_STATES):
        for process in state.processes:
            process.forget()
        state.processes.clear()
        state.begin()


os.register_at_fork(after_in_child=_begin_in_child)
