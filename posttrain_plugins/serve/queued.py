"""What a request gives to the engine: backends and scorers that wait in the line of the models' thread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

from posttrain_plugins.backends.protocol import Backend
from posttrain_plugins.engine.scoring import spent_of
from posttrain_plugins.serve.model_thread import IndexedCompletion, ModelThread
from posttrain_plugins.types import Generate, ResolvedReward, Usage

__all__ = ["QueuedBackend", "queued"]


class QueuedBackend:
    """A backend whose completions are drawn by the models' thread, together with other clients'."""

    def __init__(self, model_thread: ModelThread, backend: Backend, is_stopped: Callable[[], bool]) -> None:
        self.identity = backend.identity  # the model's own: seeds, and so answers, do not depend on the queue
        self.capabilities = backend.capabilities
        self.opens_thought = bool(getattr(backend, "opens_thought", False))
        self._draw = partial(model_thread.draw, backend, is_stopped=is_stopped)

    def generate(self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]) -> Iterator[IndexedCompletion]:
        """See `Backend.generate`."""
        return self._draw(batch, seeds)


class _QueuedReward:
    """A reward that the models' thread calls, for several clients at once."""

    def __init__(self, model_thread: ModelThread, func: Callable[..., Any]) -> None:
        self._model_thread = model_thread
        self._func = func

    def __call__(self, **columns: list[Any]) -> Any:
        if any(map(iscoroutinefunction, (self._func, type(self._func).__call__))):
            return self._func(**columns)  # it waits for another server, and should not hold up the models
        return self._model_thread.call(self._func, id(self._func), **columns)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._func, name)
        if name == "step_scores":
            return partial(self._model_thread.call, value, (id(self._func), name))
        # Any other method may touch the model too (`count_tokens` its tokenizer), but is not put together.
        return partial(self._model_thread.call, value) if callable(value) else value


def queued(model_thread: ModelThread, reward: ResolvedReward) -> ResolvedReward:
    """Return the same reward for one client, called by the models' thread."""
    func: Any = reward.func
    if spent_of(reward) is not None:  # a counter of its own: the next client does not pay for this one's judge
        func = copy.copy(func)
        func.spent = Usage()
    return replace(reward, func=_QueuedReward(model_thread, func))
