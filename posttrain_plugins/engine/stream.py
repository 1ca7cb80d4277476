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

from posttrain_plugins.backends.protocol import AsyncBackend, Backend
from posttrain_plugins.engine.problem_run import Ask, Live
from posttrain_plugins.engine.session import Session
from posttrain_plugins.types import CallTool, Completion, Generate

__all__ = ["run_stream"]

POLL_S = 0.1  # between two looks at `should_stop` while nothing lands
AT_ONCE = 16  # problems that begin before the event loop sends what they ask: servers work while others begin
THREADS = 32  # tools, scorers and in-process backends at work at once


def run_stream(session: Session, lives: Sequence[Live]) -> None:
    """Let every problem come to its result.

    It runs in an event loop of its own: in this thread, or in another one where this thread has a running loop (a
    notebook, a server).
    """
    session.check_in()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        error = asyncio.run(_Stream(session).run(lives))
    else:
        error = _run_beside(session, lives)
    if error is not None:
        raise error
    session.check_in()


def _run_beside(session: Session, lives: Sequence[Live]) -> BaseException | None:
    """In another thread; Ctrl-C here ends it there."""
    is_struck = threading.Event()
    should_stop = session.should_stop
    session.should_stop = lambda: is_struck.is_set() or (should_stop is not None and should_stop())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, _Stream(session).run(lives))
        try:
            return running.result()
        except KeyboardInterrupt:
            is_struck.set()
            raise


@dataclass
class _Desk:
    """Where requests queue that are answered together: those that came while it was busy are its next call."""

    serve: Callable[[list[Ask]], Awaitable[None]]
    group: asyncio.TaskGroup
    queue: list[tuple[Ask, asyncio.Future[None]]] = field(default_factory=list)
    is_busy: bool = False

    async def wait(self, ask: Ask) -> None:
        """Until the ask is answered."""
        answered = asyncio.get_running_loop().create_future()
        self.queue.append((ask, answered))
        if not self.is_busy:
            self.is_busy = True
            self.group.create_task(_carried(self._work()))
        await answered

    async def _work(self) -> None:
        while self.queue:
            turn, self.queue = [(a, f) for a, f in self.queue if not f.done()], []  # done: nobody waits any more
            if turn:
                await self.serve([ask for ask, _ in turn])
            for _, answered in turn:
                if not answered.done():
                    answered.set_result(None)
        self.is_busy = False


class _Stream:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.desks: dict[int, _Desk] = {}
        self.drawing: set[asyncio.Timeout] = set()  # around each request in flight

    async def run(self, lives: Sequence[Live]) -> BaseException | None:
        """What went wrong, to be raised when the loop is closed."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        try:
            return await _first_error(self._run(lives))
        finally:
            await self._close()

    async def _run(self, lives: Sequence[Live]) -> None:
        async with asyncio.TaskGroup() as self.group:  # desks end in it what they have begun
            poll = self.group.create_task(_carried(self._poll()))
            async with asyncio.TaskGroup() as problems:
                for i, live in enumerate(lives, start=1):
                    problems.create_task(_carried(self._solve(live)))
                    if i % AT_ONCE == 0 and not self.session.total.is_limited:  # a total meets them in their order
                        await asyncio.sleep(0)
            poll.cancel()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            self.session.check_in()

    async def _solve(self, live: Live) -> None:
        while live.result is None:
            asks = self.session.admit(live)
            self.session.charge_known(live)
            if len(asks) == 1:
                await self._answer(asks[0])
            elif asks:
                async with asyncio.TaskGroup() as together:
                    for ask in asks:
                        together.create_task(_carried(self._answer(ask)))
            else:
                self.session.check_in()
                await asyncio.sleep(0)
            self.session.settle(live)

    async def _answer(self, ask: Ask) -> None:
        """Wait for one request, until the time is over or, where something is drawn, a total is spent."""
        spent = self.session.total.is_spent()
        is_drawn = isinstance(ask.request, Generate)
        if spent == "seconds" or (spent and is_drawn):
            return
        if not (ask.live.meter.is_limited or self.session.total.is_limited):
            return await self._ask(ask)
        async with _until(min(ask.live.meter.deadline, self.session.total.deadline)) as scope:
            if is_drawn:
                self.drawing.add(scope)
            try:
                await self._ask(ask)
            finally:
                self.drawing.discard(scope)

    async def _ask(self, ask: Ask) -> None:
        if isinstance(ask.request, CallTool):
            self.session.land_tool(ask, await asyncio.to_thread(self.session.call_tool, ask))
        elif not isinstance(ask.request, Generate):
            reward = self.session.scorer(ask.request.scorer)
            await self._desk(reward.func, self._score).wait(ask)
        elif hasattr(backend := self.session.backend(ask.request.model), "agenerate"):
            await self._generate(cast(AsyncBackend, backend), ask)
        else:
            await self._desk(backend, partial(self._draw, backend)).wait(ask)

    def _desk(self, owner: Any, serve: Callable[[list[Ask]], Awaitable[None]]) -> _Desk:
        if id(owner) not in self.desks:
            self.desks[id(owner)] = _Desk(serve, self.group)
        return self.desks[id(owner)]

    # What answers

    async def _generate(self, backend: AsyncBackend, ask: Ask) -> None:
        request, seeds = self.session.order(ask)
        completions = await backend.agenerate(request, seeds)
        for j, completion in enumerate(completions[: len(seeds)]):
            self.session.land(ask, j, completion)
        self.session.land_missing(ask)
        self._look_around()

    async def _draw(self, backend: Backend, asks: list[Ask]) -> None:
        """One call of a backend in this process, from a thread; what it yields lands here."""
        loop = asyncio.get_running_loop()
        batch, seeds = zip(*map(self.session.order, asks), strict=True)

        async def land(i: int, j: int, completion: Completion) -> None:
            self.session.land(asks[i], j, completion)
            self._look_around()

        def work() -> bool:
            for i, j, completion in backend.generate(batch, seeds):
                asyncio.run_coroutine_threadsafe(land(i, j, completion), loop).result()
                if self.session.total.is_spent():
                    return False
            return True

        if await asyncio.to_thread(work):
            for ask in asks:
                self.session.land_missing(ask)

    async def _score(self, asks: list[Ask]) -> None:
        async with _until(self.session.total.deadline):
            for call in self.session.score_calls(asks):
                await call.arun()
        for ask in asks:
            self.session.land_scores(ask)
        self._look_around()

    def _look_around(self) -> None:
        """Something has landed: tell, and cut what is being drawn if a total is spent."""
        self.session.check_in()
        if self.session.total.is_spent():
            for scope in self.drawing:
                if not scope.expired():
                    scope.reschedule(asyncio.get_running_loop().time())
            self.drawing.clear()

    async def _close(self) -> None:
        backends = self.session.backends
        each = list(backends.values()) if isinstance(backends, Mapping) else [backends]
        for backend in {id(backend): backend for backend in each}.values():
            if hasattr(backend, "aclose"):
                await backend.aclose()


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[asyncio.Timeout]:
    """Leaves the block at a point of the monotonic clock, in silence."""
    is_open = math.isinf(deadline)
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
    try:
        await work
    except (KeyboardInterrupt, SystemExit) as error:
        raise _Carried(error) from error


async def _first_error(work: Coroutine[Any, Any, None]) -> BaseException | None:
    """What went wrong first, out of all groups of tasks."""
    found: BaseException
    try:
        await work
    except BaseExceptionGroup as group:
        found = group
    else:
        return None
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found.error if isinstance(found, _Carried) else found
