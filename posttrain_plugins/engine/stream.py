"""The driver for servers: no barrier. Each problem goes on as soon as its own requests are answered.

Requests to servers are all open at once (`AsyncBackend` limits them). What cannot take many requests at a time has a
desk: a scorer, and a backend in this process that judges beside a policy on a server. What queues at a desk while it is
busy goes into its next call, and it works in a thread, so that the servers stay busy meanwhile.

1. A problem's own `seconds` end its requests in flight, too; in waves they are looked at between two waves.
2. In a replay problems take turns after each round that the log answers, so that a total budget meets them as it did.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from posttrain_plugins.backends.protocol import AsyncBackend, Backend, counting
from posttrain_plugins.engine.problem_run import PendingRequest, ProblemRun
from posttrain_plugins.engine.session import Session
from posttrain_plugins.types import CallTool, Completion, Generate

__all__ = ["run_stream"]

POLL_S = 0.1  # between two looks at `should_stop` while nothing lands
AT_ONCE = 16  # problems that begin before the event loop sends what they ask: servers work while others begin
THREADS = 32  # tools, scorers and in-process backends at work at once


def run_stream(session: Session, runs: Sequence[ProblemRun]) -> None:
    """Let every problem come to its result.

    It runs in an event loop of its own: in this thread, or in another one where this thread has a running loop (a
    notebook, a server).
    """
    session.check_in()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        error = asyncio.run(_Stream(session).run(runs))
    else:
        error = _run_beside(session, runs)
    if error is not None:
        # only now that the loop is closed, with all its connections: raised within, it would leave these open
        raise error
    session.check_in()


def _run_beside(session: Session, runs: Sequence[ProblemRun]) -> BaseException | None:
    """Run in another thread; Ctrl-C here ends it there.

    Not `wait_for`, which every other caller of a coroutine uses: a signal reaches this thread alone, and the thread of
    the pool has to be told before the pool can be left.
    """
    is_struck = threading.Event()
    should_stop = session.should_stop
    session.should_stop = lambda: is_struck.is_set() or (should_stop is not None and should_stop())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, _Stream(session).run(runs))
        try:
            return running.result()
        except KeyboardInterrupt:
            is_struck.set()
            raise


@dataclass
class _Desk:
    """Where requests queue that are answered together: those that came while it was busy are its next call."""

    serve: Callable[[list[PendingRequest]], Awaitable[None]]
    group: asyncio.TaskGroup
    queue: list[tuple[PendingRequest, asyncio.Future[None]]] = field(default_factory=list)
    is_busy: bool = False

    async def wait(self, pending: PendingRequest) -> None:
        """Wait until the request is answered."""
        answered = asyncio.get_running_loop().create_future()
        self.queue.append((pending, answered))
        # A task in the group of the whole run, not of the problem that comes first: that one may be cut by its own
        # budget while others still wait for the same call.
        if not self.is_busy:
            self.is_busy = True
            self.group.create_task(_carried(self._work()))
        await answered

    async def _work(self) -> None:
        while self.queue:
            turn, self.queue = [(p, f) for p, f in self.queue if not f.done()], []  # done: nobody waits any more
            if turn:
                await self.serve([pending for pending, _ in turn])
            for _, answered in turn:
                if not answered.done():
                    answered.set_result(None)
        self.is_busy = False


class _Stream:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.desks: dict[int, _Desk] = {}
        self.drawing: set[asyncio.Timeout] = set()  # around each request in flight

    async def run(self, runs: Sequence[ProblemRun]) -> BaseException | None:
        """Return what went wrong, to be raised when the loop is closed."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        try:
            return await _first_error(self._run(runs))
        finally:
            backends = self.session.backends
            each = list(backends.values()) if isinstance(backends, Mapping) else [backends]
            for backend in {id(backend): backend for backend in each}.values():  # one for two roles closes once
                if hasattr(backend, "aclose"):
                    await backend.aclose()

    async def _run(self, runs: Sequence[ProblemRun]) -> None:
        # Two groups, one in the other: desks end in the outer one what they have begun, when no problem waits any more.
        async with asyncio.TaskGroup() as self.group:
            poll = self.group.create_task(_carried(self._poll()))
            async with asyncio.TaskGroup() as problems:
                for i, run in enumerate(runs, start=1):
                    problems.create_task(_carried(self._solve(run)))
                    # A total budget is to meet the problems in their order, so then none begins to send before all have
                    # asked; else the servers work while the others still begin.
                    if i % AT_ONCE == 0 and not self.session.total.is_limited:
                        await asyncio.sleep(0)
            poll.cancel()

    async def _poll(self) -> None:
        while True:  # one server may take minutes for an answer: who wants to stop is not to wait for it
            await asyncio.sleep(POLL_S)
            self.session.check_in()

    async def _solve(self, run: ProblemRun) -> None:
        while run.result is None:
            waiting = self.session.admit(run)
            self.session.charge_known(run)
            if len(waiting) == 1:  # the usual case, without the tasks of a group
                await self._answer(waiting[0])
            elif waiting:
                # The strategy yielded a list, and is sent a list: a barrier, but for this problem alone.
                async with asyncio.TaskGroup() as together:
                    for pending in waiting:
                        together.create_task(_carried(self._answer(pending)))
            else:
                # Answered from the log, all of it. Without this pause a replay would run one problem to its end before
                # the next begins, and a total budget would be spent by other problems than in the run.
                self.session.check_in()
                await asyncio.sleep(0)
            self.session.settle(run)

    async def _answer(self, pending: PendingRequest) -> None:
        """Wait for one request, until the time is over or, where something is drawn, a total is spent."""
        spent = self.session.total.is_spent()
        is_drawn = isinstance(pending.request, Generate)
        # tokens forbid drawing more of them; what was drawn may still be scored
        if spent == "seconds" or (spent and is_drawn):
            return
        if not (pending.run.meter.is_limited or self.session.total.is_limited):
            return await self._ask(pending)  # nothing could cut it, so it needs no scope
        async with _until(min(pending.run.meter.deadline, self.session.total.deadline)) as scope:
            if is_drawn:
                self.drawing.add(scope)  # `_look_around` ends it where another request spends the total
            try:
                await self._ask(pending)
            finally:
                self.drawing.discard(scope)

    async def _ask(self, pending: PendingRequest) -> None:
        request = pending.request
        if isinstance(request, CallTool):
            self.session.land_tool(pending, await asyncio.to_thread(self.session.call_tool, pending))
        elif not isinstance(request, Generate):
            await self._wait_at_desk(self.session.scorer(request.scorer).func, self._score, pending)
        elif hasattr(backend := self.session.backend(request.model), "agenerate"):
            order, seeds = self.session.order(pending)
            completions = await cast(AsyncBackend, backend).agenerate(order, seeds)
            for j, completion in enumerate(completions[: len(seeds)]):
                self.session.land(pending, j, completion)
            self.session.land_missing(pending)
            self._look_around()
        else:
            await self._wait_at_desk(backend, partial(self._draw, backend), pending)

    async def _wait_at_desk(
        self, owner: Any, serve: Callable[[list[PendingRequest]], Awaitable[None]], pending: PendingRequest
    ) -> None:
        # by the object: two names of one reward are one model, which takes one call at a time
        await self.desks.setdefault(id(owner), _Desk(serve, self.group)).wait(pending)

    # What answers

    async def _draw(self, backend: Backend, waiting: list[PendingRequest]) -> None:
        """Call a backend in this process once, from a thread; what it yields lands here."""
        loop = asyncio.get_running_loop()
        batch, seeds = zip(*map(self.session.order, waiting), strict=True)

        # The session belongs to the loop's thread: it has no locks. So a completion is handed over there, and waited
        # for, which also lets what goes wrong there (an interruption) come up here and end the backend's generator.
        async def land(i: int, j: int, completion: Completion) -> None:
            self.session.land(waiting[i], j, completion)
            self._look_around()

        def count_here(count: int) -> None:
            self.session.tokens += count

        def drew(count: int) -> None:
            loop.call_soon_threadsafe(count_here, count)  # and told by `_poll`

        def work() -> bool:
            with counting(backend, drew):
                for i, j, completion in backend.generate(batch, seeds):
                    asyncio.run_coroutine_threadsafe(land(i, j, completion), loop).result()
                    if self.session.total.is_spent():
                        return False
            return True

        if await asyncio.to_thread(work):
            for pending in waiting:
                self.session.land_missing(pending)

    async def _score(self, waiting: list[PendingRequest]) -> None:
        async with _until(self.session.total.deadline):
            for call in self.session.score_calls(waiting):
                await call.arun()
        for pending in waiting:
            self.session.land_scores(pending)
        self._look_around()

    def _look_around(self) -> None:
        """Tell that something has landed, and cut what is being drawn if a total is spent."""
        self.session.check_in()
        if self.session.total.is_spent():
            for scope in self.drawing:
                if not scope.expired():
                    scope.reschedule(asyncio.get_running_loop().time())
            self.drawing.clear()


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[asyncio.Timeout]:
    """Leave the block at a point of the monotonic clock, in silence."""
    is_open = math.isinf(deadline)
    # the loop has a clock of its own, which need not be the monotonic one
    when = None if is_open else asyncio.get_running_loop().time() + deadline - time.monotonic()
    scope = asyncio.timeout_at(when)
    try:
        async with scope:
            yield scope
    except TimeoutError:
        if not scope.expired():  # somebody else's
            raise


class _Carried(Exception):
    """Holds a KeyboardInterrupt or SystemExit: raised in a task, these would leave the loop with tasks still in it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _carried(work: Coroutine[Any, Any, None]) -> None:
    """Let a task end with an exception that its group waits for, whatever ends it."""
    try:
        await work
    except (KeyboardInterrupt, SystemExit) as error:
        raise _Carried(error) from error


async def _first_error(work: Coroutine[Any, Any, None]) -> BaseException | None:
    """Return what went wrong first, out of all groups of tasks."""
    found: BaseException
    try:
        await work
    except BaseExceptionGroup as group:
        found = group
    else:
        return None
    # the first of each group is the cause: the group has cancelled the others because of it
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found.error if isinstance(found, _Carried) else found
