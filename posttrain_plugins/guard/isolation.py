"""A reward in processes of its own: the pool that the guard asks for scores."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.guard.outcome import Method, Outcome, call_of, is_async, late
from posttrain_plugins.guard.scorer import Scorer
from posttrain_plugins.guard.settings import GuardSettings
from posttrain_plugins.plugins.registry import FILE_MODULE
from posttrain_plugins.processes.pool import START_LIMIT_S, ProcessFailure, ProcessPool

__all__ = ["BUNDLE", "IsolatedReward"]

IMPORT_LIMIT_S = 10.0  # for what one completion makes the plugin import, since the last import began
GRACE_S = 1.0  # a process cancels a coroutine by itself; this ends one that blocks
BUNDLE = 64  # completions that an asynchronous reward judges at once in one process


class IsolatedReward:
    """Processes that have loaded a reward, and are replaced when one hangs or dies.

    Args:
        reward: what they load, once each.
        settings: how many they are, and how long one completion may take.

    Raises:
        InputError: the reward cannot be pickled.
    """

    def __init__(self, reward: Callable[..., Any], settings: GuardSettings) -> None:
        self.reward, self.settings = reward, settings
        # A plugin named by its file (`./reward.py:f`) is no module that another process would find by itself.
        files = {
            name: str(module.__file__)
            for name, module in list(sys.modules.items())
            if name.startswith(FILE_MODULE) and getattr(module, "__file__", None)
        }
        try:
            handler = pickle.dumps(partial(Scorer, reward))
        except Exception as cause:  # whatever a plugin holds
            raise InputError(
                f"the reward cannot be isolated, it does not pickle: {type(cause).__name__}: {cause}",
                hint="define it at the top of a module: no lambda, no function inside a function, no open file",
            ) from cause
        lost = partial(_outcome_of_failure, settings.timeout_s)
        self.pool = ProcessPool(
            handler, settings.workers, lost, files=files, import_limit_s=IMPORT_LIMIT_S, keeps_spare=True
        )

    def score(self, method: Method, rows: Sequence[Any]) -> list[Future[Outcome]]:
        """The outcome of each row, as it will come from whichever process is free."""
        asked, timeout_s = [(method, row) for row in rows], self.settings.timeout_s
        if not is_async(call_of(self.reward, method)):
            return self.pool.submit(asked, timeout_s)
        per_process = -(-len(rows) // self.settings.workers)
        size = max(1, min(BUNDLE, per_process))
        return self.pool.submit(asked, timeout_s, rows_per_request=size, grace_s=GRACE_S)

    def close(self) -> None:
        """End the processes."""
        self.pool.close()


def _outcome_of_failure(timeout_s: float | None, failure: ProcessFailure) -> Outcome | PluginBroken:
    if failure.kind == "late":
        return late(timeout_s)
    if failure.kind == "died":
        return Outcome("error", detail=f"the process died: {failure.detail}")
    said = failure.detail if failure.kind == "broken" else f"it has not started within {START_LIMIT_S:g} s"
    return PluginBroken(
        f"the reward cannot be loaded in a process of its own: {said}",
        hint="it must be importable there: define it in a module or a file, not in the script that runs",
    )
