"""What became of a score: ok, none, timeout, error or non_finite. Worker and trainer process judge by the same code."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError

__all__ = ["FAILED", "KINDS", "Kind", "Method", "Outcome", "call_of", "is_async", "score", "score_async"]

Kind: TypeAlias = Literal["ok", "none", "timeout", "error", "non_finite"]
Method: TypeAlias = Literal["__call__", "step_scores"]
KINDS: tuple[Kind, ...] = ("ok", "none", "timeout", "error", "non_finite")
FAILED = frozenset(KINDS[2:])


@dataclass(frozen=True, slots=True)
class Outcome:
    """One score, or the lack of one.

    Args:
        kind: `ok`; `none`, the reward says that it cannot judge; or how it failed.
        value: the score, or the scores of the steps.
        detail: what went wrong, for people.
    """

    kind: Kind
    value: Any = None
    detail: str = ""


def call_of(reward: Any, method: Method) -> Callable[..., Any]:
    """What is called: the reward itself, or its `step_scores`."""
    return reward if method == "__call__" else reward.step_scores  # type: ignore[no-any-return]


def is_async(reward: Any) -> bool:
    """Does calling it give a coroutine? An object says so by its `__call__`, as for TRL."""
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None))  # noqa: B004


def score(reward: Any, method: Method, row: Mapping[str, Any]) -> Outcome:
    """One completion, `row` being the arguments of a call for it alone; whatever goes wrong is an outcome.

    Raises:
        InputError: the reward refuses to work at all (something is not installed); that is no completion's failure.
    """
    try:
        return read(method, call_of(reward, method)(**row))
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        return failed(error)


async def score_async(reward: Any, method: Method, row: Mapping[str, Any], timeout_s: float | None) -> Outcome:
    """The same of a coroutine, cancelled at the limit.

    Raises:
        InputError: as `score`.
    """
    import asyncio  # a third of a worker's start, where nothing is asynchronous

    try:
        async with asyncio.timeout(timeout_s) as limit:
            return read(method, await call_of(reward, method)(**row))
    except InputError:
        raise
    except TimeoutError as error:
        return late(timeout_s) if limit.expired() else failed(error)
    except (Exception, SystemExit) as error:
        return failed(error)


def late(timeout_s: float | None) -> Outcome:
    return Outcome("timeout", detail=f"no score within {timeout_s:g} s")


def failed(error: BaseException) -> Outcome:
    return Outcome("error", detail=f"{type(error).__name__}: {error}")


def read(method: Method, values: Any) -> Outcome:
    """What a call for one completion gave."""
    values = list(values)
    if len(values) != 1:
        return Outcome("error", detail=f"it gave {len(values)} scores for one completion")
    return read_one(method, values[0])


def read_one(method: Method, value: Any) -> Outcome:
    """One of the values of a call."""
    try:
        if value is None:
            return Outcome("none")
        numbers = [float(value)] if method == "__call__" else [float(one) for one in value]
    except (TypeError, ValueError) as error:
        return Outcome("error", detail=f"it gave {value!r:.80}, expected a number: {error}")
    if not all(map(math.isfinite, numbers)):
        return Outcome("non_finite", detail=f"it gave {value!r:.80}")
    return Outcome("ok", numbers[0] if method == "__call__" else numbers)
