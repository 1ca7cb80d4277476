"""What became of a score: ok, none, timeout, error or non_finite. Worker and trainer process judge by the same code."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError

__all__ = [
    "FAILED",
    "OUTCOMES",
    "OutcomeKind",
    "ScoreMethod",
    "ScoreOutcome",
    "is_async",
    "method_of",
    "read_value",
    "score",
    "score_async",
    "timed_out",
]

OutcomeKind: TypeAlias = Literal["ok", "none", "timeout", "error", "non_finite"]
ScoreMethod: TypeAlias = Literal["__call__", "step_scores"]
OUTCOMES: tuple[OutcomeKind, ...] = ("ok", "none", "timeout", "error", "non_finite")
FAILED = frozenset(OUTCOMES[2:])


@dataclass(frozen=True, slots=True)
class ScoreOutcome:
    """One score, or the lack of one.

    Args:
        kind: `ok`; `none`, the reward says that it cannot judge; or how it failed.
        value: the score, or the scores of the steps.
        detail: what went wrong, for people.
    """

    kind: OutcomeKind
    value: Any = None
    detail: str = ""


def method_of(reward: Any, method: ScoreMethod) -> Callable[..., Any]:
    """Return what is called: the reward itself, or its `step_scores`."""
    return reward if method == "__call__" else reward.step_scores  # type: ignore[no-any-return]


def is_async(reward: Any) -> bool:
    """Return whether calling it gives a coroutine; an object says so by its `__call__`, as for TRL."""
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None))  # noqa: B004


def score(reward: Any, method: ScoreMethod, row: Mapping[str, Any]) -> ScoreOutcome:
    """Score one completion; whatever goes wrong is an outcome.

    Args:
        reward: the author's callable.
        method: which of its methods.
        row: the arguments of a call for this completion alone.

    Raises:
        InputError: the reward refuses to work at all (something is not installed); that is no completion's failure.
    """
    try:
        return _read(method, method_of(reward, method)(**row))
    except InputError:
        raise
    except PLUGIN_FAILURES as error:
        return _failed(error)


async def score_async(
    reward: Any, method: ScoreMethod, row: Mapping[str, Any], timeout_s: float | None
) -> ScoreOutcome:
    """Score one completion by a coroutine, which is cancelled at the limit.

    Raises:
        InputError: as `score`.
    """
    import asyncio  # a third of a worker's start, where nothing is asynchronous

    try:
        async with asyncio.timeout(timeout_s) as limit:
            return _read(method, await method_of(reward, method)(**row))
    except InputError:
        raise
    except TimeoutError as error:  # ours, or one that the reward's own client raised
        return timed_out(timeout_s) if limit.expired() else _failed(error)
    except PLUGIN_FAILURES as error:
        return _failed(error)


def timed_out(timeout_s: float | None) -> ScoreOutcome:
    """Return the outcome of a completion that took too long."""
    return ScoreOutcome("timeout", detail=f"no score within {timeout_s:g} s")


def read_value(method: ScoreMethod, value: Any) -> ScoreOutcome:
    """Read one of the values that a call gave."""
    try:
        if value is None:
            return ScoreOutcome("none")
        numbers = [float(value)] if method == "__call__" else [float(one) for one in value]
    except (TypeError, ValueError) as error:
        return ScoreOutcome("error", detail=f"it gave {value!r:.80}, expected a number: {error}")
    if not all(map(math.isfinite, numbers)):  # one NaN in a group makes all its advantages NaN
        return ScoreOutcome("non_finite", detail=f"it gave {value!r:.80}")
    return ScoreOutcome("ok", numbers[0] if method == "__call__" else numbers)


def _read(method: ScoreMethod, values: Any) -> ScoreOutcome:
    """Read what a call for one completion gave."""
    values = list(values)
    if len(values) != 1:
        return ScoreOutcome("error", detail=f"it gave {len(values)} scores for one completion")
    return read_value(method, values[0])


def _failed(error: BaseException) -> ScoreOutcome:
    return ScoreOutcome("error", detail=f"{type(error).__name__}: {error}")
