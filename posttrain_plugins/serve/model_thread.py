"""One thread owns the models. Requests of all clients wait in line; what waits together is answered in one wave.

A client's strategy runs in a thread of its own and only ever waits here. So a long search and a short question share
waves, and neither waits for the other's end. Completions are handed over one by one as they are finished; between two
of them the thread scores and tokenizes for whoever asks, so that a client whose part of a wave is done goes on at once.

1. A wave begins when every client that is inside waits, or `GATHER_S` after the first of them.
2. A wave that raises is drawn again one request at a time: a request that cannot be answered fails alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from posttrain_plugins.backends.protocol import Backend
from posttrain_plugins.errors import PLUGIN_FAILURES, Interrupted
from posttrain_plugins.types import Completion, Generate

__all__ = ["IndexedCompletion", "ModelThread"]

GATHER_S = 0.02
POLL_S = 0.2

IndexedCompletion: TypeAlias = tuple[int, int, Completion]
"""Which request of a batch, which of its completions, and the completion."""


@dataclass(eq=False)
class _CallJob:
    """A function to be called by the thread; those of one `key` may be put together, their `columns` joined."""

    function: Callable[..., Any]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    key: Hashable = None
    done: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None

    @property
    def group(self) -> Hashable:
        """Equal for calls that can be one: of one key and the same columns, all plain or all conversational."""
        if self.key is None:
            return id(self)
        is_plain = isinstance(next(iter(self.columns["completions"]), ""), str)
        return self.key, *self.columns, is_plain

    def finish(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value, self.error = value, error
        self.done.set()


@dataclass(eq=False)
class _DrawJob:
    """One client's part of a wave. `out` gets what is drawn, None at the end, or the exception."""

    backend: Backend
    batch: Sequence[Generate]
    seeds: Sequence[Sequence[int]]
    is_stopped: Callable[[], bool]
    out: queue.SimpleQueue[IndexedCompletion | BaseException | None] = field(default_factory=queue.SimpleQueue)
    given: set[tuple[int, int]] = field(default_factory=set)

    @property
    def is_complete(self) -> bool:
        return len(self.given) == sum(map(len, self.seeds))

    def give(self, i: int, j: int, completion: Completion) -> None:
        if (i, j) not in self.given:  # a wave that is drawn again draws what was given before it failed, too
            self.given.add((i, j))
            self.out.put((i, j, completion))
            if self.is_complete:
                self.out.put(None)


class ModelThread:
    """The thread, and the line before it.

    `waves` and `completions` count what it has drawn.
    """

    def __init__(self) -> None:
        self.waves = 0
        self.completions = 0
        self._line = threading.Condition()
        self._jobs: list[_CallJob | _DrawJob] = []
        self._clients = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    # --- called by clients' threads -----------------------------------------------------------------------------------

    @contextmanager
    def client(self) -> Iterator[None]:
        """Count a client as inside: a wave waits a moment for those that may still have something to ask."""
        with self._line:
            self._clients += 1
        try:
            yield
        finally:
            with self._line:
                self._clients -= 1
                self._line.notify_all()  # a wave may have waited for this one alone

    def call(self, function: Callable[..., Any], key: Hashable = None, /, **columns: list[Any]) -> Any:
        """Return what the function returns when it is called in this thread.

        Args:
            function: called with the columns.
            key: calls of the same key that wait together become one call with longer columns.
            columns: equally long lists, `completions` among them where there is a key.
        """
        job = _CallJob(function, columns, key)
        self._put(job)
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.value

    def draw(
        self,
        backend: Backend,
        batch: Sequence[Generate],
        seeds: Sequence[Sequence[int]],
        is_stopped: Callable[[], bool],
    ) -> Iterator[IndexedCompletion]:
        """Do what `Backend.generate` does, in a wave together with others.

        Raises:
            Interrupted: the client is gone.
        """
        left = threading.Event()
        job = _DrawJob(backend, batch, seeds, lambda: left.is_set() or is_stopped())
        self._put(job)
        try:
            while True:
                try:
                    drawn = job.out.get(timeout=POLL_S)
                except queue.Empty:  # a wave may go on for minutes after its client has gone
                    if is_stopped():
                        raise Interrupted("the client is gone, or the server ends") from None
                    continue
                if drawn is None:
                    return
                if isinstance(drawn, BaseException):
                    raise drawn
                yield drawn
        finally:
            left.set()  # a generator that is closed early wants no more

    def close(self, timeout_s: float | None = None) -> bool:
        """End the thread when the line is empty; False where a wave takes longer, which is left behind."""
        with self._line:
            self._is_closed = True
            self._line.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, job: _CallJob | _DrawJob) -> None:
        with self._line:
            if self._is_closed:
                raise Interrupted("the server ends")
            self._jobs.append(job)
            self._line.notify_all()

    # --- the thread itself --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._line:
                self._line.wait_for(lambda: self._jobs or self._is_closed)
                # A client that is inside and does not wait is between two requests of its strategy: it will be here in
                # a moment, and costs less in this wave than in one of its own.
                self._line.wait_for(lambda: len(self._jobs) >= self._clients, timeout=GATHER_S)
                jobs, self._jobs = self._jobs, []
            if not jobs:
                return
            self._answer_calls(job for job in jobs if isinstance(job, _CallJob))  # first: they are short
            draws = [job for job in jobs if isinstance(job, _DrawJob)]
            for backend in {id(job.backend): job.backend for job in draws}.values():
                self._draw(backend, [job for job in draws if job.backend is backend])

    def _draw(self, backend: Backend, jobs: Sequence[_DrawJob]) -> None:
        jobs = [job for job in jobs if not (job.is_stopped() or job.is_complete)]
        if not jobs:
            return
        self.waves += 1
        try:
            self._run_wave(backend, jobs)
        except Exception as error:  # the boundary of models: whatever a request does here, the others go on
            if len(jobs) == 1:
                jobs[0].out.put(error)
            else:
                for job in jobs:
                    self._draw(backend, [job])

    def _run_wave(self, backend: Backend, jobs: Sequence[_DrawJob]) -> None:
        origin = [(job, i) for job in jobs for i in range(len(job.batch))]
        batch = [job.batch[i] for job, i in origin]
        for k, j, completion in backend.generate(batch, [job.seeds[i] for job, i in origin]):
            job, i = origin[k]
            self.completions += 1
            job.give(i, j, completion)
            with self._line:  # what waits to be scored does not wait for the wave's end
                calls = [one for one in self._jobs if isinstance(one, _CallJob)]
                self._jobs = [one for one in self._jobs if not isinstance(one, _CallJob)]
            self._answer_calls(calls)
            if all(job.is_complete or job.is_stopped() for job in jobs):
                return  # rows of clients that have gone are not drawn to their end
        raise RuntimeError(f"{backend.identity} drew fewer completions than it was asked for")

    def _answer_calls(self, calls: Iterable[_CallJob]) -> None:
        groups: dict[Hashable, list[_CallJob]] = {}
        for call in calls:
            groups.setdefault(call.group, []).append(call)
        for group in groups.values():
            self._answer_together(group)

    def _answer_together(self, calls: Sequence[_CallJob]) -> None:
        first = calls[0]
        try:
            if len(calls) == 1:
                first.finish(first.function(**first.columns))
                return
            joint = {name: [value for call in calls for value in call.columns[name]] for name in first.columns}
            values = iter(first.function(**joint))
            parts = [[next(values) for _ in call.columns["completions"]] for call in calls]
        except PLUGIN_FAILURES as error:
            if len(calls) == 1:
                first.finish(error=error)
            else:  # one of them, nobody knows which
                for call in calls:
                    self._answer_together([call])
            return
        for call, part in zip(calls, parts, strict=True):
            call.finish(part)
