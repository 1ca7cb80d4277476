"""Rewards called on texts, in TRL's signature, with the log as their cache."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.inference.log import RequestLog
from posttrain_plugins.text import is_conversational
from posttrain_plugins.types import Prompt, ResolvedReward

__all__ = ["Scored", "as_completion", "count_tokens", "is_scored", "key_of", "score", "score_steps"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion to be scored.

    Args:
        problem: the problem's id; an equal completion of the same problem is scored once.
        prompt: as the data set has it.
        text: the completion.
        columns: the problem's other columns, the reference answer among them.
        steps: the completion's steps, where each is to be scored.
    """

    problem: str
    prompt: Prompt
    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


def score(reward: ResolvedReward, items: Sequence[Scored], log: RequestLog) -> list[float | None]:
    """What each completion is worth: one call of the reward for all that the log does not know.

    Raises:
        PluginBroken: where the reward raises, or does not give one float or None per completion.
    """
    return _through_log("score", reward, items, log, lambda missing: _call(reward, reward.func, missing, _as_score))


def score_steps(reward: ResolvedReward, items: Sequence[Scored], log: RequestLog) -> list[list[float]]:
    """What each step is worth: `step_scores` on the joined steps; the steps themselves go along as column `steps`.

    Raises:
        InputError: where the reward has no `step_scores`.
        PluginBroken: where it raises, or does not give one list per completion.
    """
    judge = getattr(reward.func, "step_scores", None)
    if judge is None:
        raise InputError(f"reward {reward.name!r} cannot score steps: it has no step_scores", hint="name one that has")
    return _through_log("step_scores", reward, items, log, lambda missing: _call(reward, judge, missing, _as_steps))


def is_scored(kind: str, reward: ResolvedReward, item: Scored, log: RequestLog) -> bool:
    """Whether the log knows the answer; `kind` is `score` or `step_scores`."""
    return _key(kind, reward, item) in log


def count_tokens(reward: ResolvedReward, items: Sequence[Scored]) -> int:
    """The tokens that a reward reads, if it can tell (`count_tokens(prompts, completions) -> int`), else 0."""
    count = getattr(reward.func, "count_tokens", None)
    return int(count(**_pairs(items))) if count and items else 0


def as_completion(prompt: Prompt, text: str) -> Any:
    """A completion in the format of its prompt: a message where the prompt is conversational."""
    return [{"role": "assistant", "content": text}] if is_conversational(prompt) else text


def key_of(*parts: Any) -> str:
    """One name for one request, the same in every run."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _key(kind: str, reward: ResolvedReward, item: Scored) -> str:
    return key_of(kind, reward.name, item.problem, item.prompt, item.text, item.steps)


def _through_log(
    kind: str,
    reward: ResolvedReward,
    items: Sequence[Scored],
    log: RequestLog,
    call: Callable[[list[Scored]], list[Any]],
) -> list[Any]:
    keys = [_key(kind, reward, item) for item in items]
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in log}
    for is_chat in (True, False):
        part = {key: item for key, item in missing.items() if is_conversational(item.prompt) == is_chat}
        for key, value in zip(part, call(list(part.values())) if part else [], strict=True):
            log.put(key, value, kind=kind, scorer=reward.name, problem=part[key].problem)
    return [log[key] for key in keys]


def _call(
    reward: ResolvedReward, func: Callable[..., Any], items: list[Scored], read: Callable[[Any], Any]
) -> list[Any]:
    arguments = {**_columns(items), **_pairs(items)}
    try:
        values = func(**arguments)
        if isinstance(values, Awaitable):
            values = _wait_for(values)
        values = [read(value) for value in values]
    except Exception as error:
        raise PluginBroken(f"reward {reward.name!r} failed: {type(error).__name__}: {error}") from error
    if len(values) != len(items):
        raise PluginBroken(f"reward {reward.name!r} gave {len(values)} scores, expected one for each of {len(items)}")
    return values


def _pairs(items: Sequence[Scored]) -> dict[str, list[Any]]:
    completions = [as_completion(item.prompt, item.text) for item in items]
    return {"prompts": [item.prompt for item in items], "completions": completions}


def _columns(items: Sequence[Scored]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for item in items for name in item.columns)
    columns = {name: [item.columns.get(name) for item in items] for name in names}
    return columns | ({"steps": [list(item.steps) for item in items]} if items[0].steps else {})


def _as_score(value: Any) -> float | None:
    """None and NaN both mean "cannot judge", as in TRL."""
    return None if value is None or math.isnan(value) else float(value)


def _as_steps(values: Any) -> list[float]:
    return [float(value) for value in values]


def _wait_for(awaitable: Awaitable[Any]) -> Any:
    """Run it in a thread of its own: the caller's may already have a running event loop (a notebook)."""
    import asyncio

    async def wait() -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()
