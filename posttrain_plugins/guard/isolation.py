"""The pool of processes in which a reward scores, or a tool is called, that may hang or crash."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.guard.outcome import ScoreOutcome, timed_out
from posttrain_plugins.guard.scorer import Scorer
from posttrain_plugins.guard.settings import GuardSettings
from posttrain_plugins.guard.tool_caller import CallOutcome, ToolCaller
from posttrain_plugins.plugins.registry import FILE_MODULE
from posttrain_plugins.processes.pool import ProcessFailure, ProcessPool
from posttrain_plugins.text.readers import Reading, current_reading

__all__ = ["open_pool", "open_tool_pool"]

IMPORT_LIMIT_S = 10.0  # for what one completion makes the plugin import, since the last import began
Lost: TypeAlias = Callable[[ProcessFailure], Any]


def open_pool(reward: Callable[..., Any], settings: GuardSettings) -> ProcessPool:
    """Return processes that load the reward, with their first row, and answer rows with a `ScoreOutcome` each.

    Raises:
        InputError: the reward cannot be pickled.
    """
    # What is said of the way of reading stays in this process, so it is handed over.
    found = current_reading()

    def lost(failure: ProcessFailure) -> ScoreOutcome | PluginBroken:
        if failure.kind == "late":
            return timed_out(settings.timeout_s)
        if failure.kind == "died":
            return ScoreOutcome("error", detail=f"the process died: {failure.detail}")
        return PluginBroken(  # no completion's failure: none can be scored
            f"the reward cannot be loaded in a process of its own: {failure.detail}",
            hint="it must be importable there: define it in a module or a file, not in the script that runs",
        )

    return _pool("reward", partial(Scorer, reward, None if found == Reading() else found), settings, lost)


def open_tool_pool(tool: Callable[..., Any], settings: GuardSettings) -> ProcessPool:
    """Return processes that load the tool, with its first call, and answer calls with a `CallOutcome` each.

    Raises:
        InputError: the tool cannot be pickled.
    """

    def lost(failure: ProcessFailure) -> CallOutcome | PluginBroken:
        if failure.kind == "late":
            return CallOutcome("timeout", detail=f"no answer within {settings.timeout_s:g} s")
        if failure.kind == "died":
            return CallOutcome("error", detail=f"the process died: {failure.detail}")
        return PluginBroken(
            f"the tool cannot be loaded in a process of its own: {failure.detail}",
            hint="it must be importable there: define it in a module or a file, not in the script that runs",
        )

    return _pool("tool", partial(ToolCaller, tool), settings, lost)


def _pool(what: str, make: Callable[..., Any], settings: GuardSettings, lost: Lost) -> ProcessPool:
    # A plugin named by its file (`./reward.py:f`) is no module that another process would find by itself.
    files = {
        name: str(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith(FILE_MODULE) and getattr(module, "__file__", None)
    }
    try:
        handler = pickle.dumps(make)
    except Exception as cause:  # whatever a plugin holds
        raise InputError(
            f"the {what} cannot be isolated, it does not pickle: {type(cause).__name__}: {cause}",
            hint="define it at the top of a module: no lambda, no function inside a function, no open file",
        ) from cause
    return ProcessPool(handler, settings.workers, lost, files=files, import_limit_s=IMPORT_LIMIT_S, keeps_spare=True)
