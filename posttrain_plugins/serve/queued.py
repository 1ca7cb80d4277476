"""What a call gives to the engine: backends and scorers that wait in the worker's line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

from posttrain_plugins.backends.protocol import Backend
from posttrain_plugins.engine.scoring import has_spent
from posttrain_plugins.serve.worker import Drawn, Worker
from posttrain_plugins.types import Generate, ResolvedReward, Usage

__all__ = ["QueuedBackend", "queued"]


class QueuedBackend:
    """A backend whose completions are drawn by the worker, together with other clients'."""

    def __init__(self, worker: Worker, backend: Backend, is_stopped: Callable[[], bool]) -> None:
        self.identity = backend.identity
        self.capabilities = backend.capabilities
        self._draw = partial(worker.draw, backend, is_stopped=is_stopped)

    def generate(self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]) -> Iterator[Drawn]:
        """See `Backend.generate`."""
        return self._draw(batch, seeds)


class _QueuedReward:
    """A reward that the worker calls, for several clients at once; one that is a coroutine waits by itself."""

    def __init__(self, worker: Worker, func: Callable[..., Any]) -> None:
        self._worker = worker
        self._func = func

    def __call__(self, **columns: list[Any]) -> Any:
        if any(map(iscoroutinefunction, (self._func, type(self._func).__call__))):
            return self._func(**columns)
        return self._worker.call(self._func, id(self._func), **columns)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._func, name)
        if name == "step_scores":
            return partial(self._worker.call, value, (id(self._func), name))
        return partial(self._worker.call, value) if callable(value) else value


def queued(worker: Worker, reward: ResolvedReward) -> ResolvedReward:
    """The same reward for one client, called by the worker. One that counts what it has spent counts anew."""
    func: Any = reward.func
    if has_spent(reward):
        func = copy.copy(func)
        func.spent = Usage()
    return replace(reward, func=_QueuedReward(worker, func))
