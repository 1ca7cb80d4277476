"""Rewards that are made of other rewards: how these are called, and what they say of themselves together."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from posttrain_plugins.errors import PluginBroken
from posttrain_plugins.types import Prompt, ResolvedReward

__all__ = ["any_says", "count_tokens", "name_of", "scores_of"]


def scores_of(
    reward: Any, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Mapping[str, Any]
) -> list[float | None]:
    """What another reward gives; an asynchronous one is waited for.

    Args:
        reward: a reward of the recipe, or a callable.
        prompts: B prompts.
        completions: B completions.
        columns: further arguments of the call.

    Returns:
        B scores.

    Raises:
        PluginBroken: it does not give one score for each completion.
    """
    found = _callable(reward)(prompts=prompts, completions=completions, **columns)
    scores = list(_wait_for(found) if inspect.isawaitable(found) else found)
    if len(scores) != len(completions):
        message = f"reward '{name_of(reward)}' gave {len(scores)} scores, expected {len(completions)}"
        raise PluginBroken(message)
    return [None if score is None or score != score else float(score) for score in scores]


def any_says(rewards: Sequence[Any], attribute: str) -> bool:
    """Does one of them have the attribute, and is it true? `oracle`, `holds_model`."""
    return any(bool(getattr(_callable(reward), attribute, False)) for reward in rewards)


def count_tokens(rewards: Sequence[Any], prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
    """The tokens that scoring these reads, by those that can tell."""
    counts = [getattr(_callable(reward), "count_tokens", None) for reward in rewards]
    return sum(int(count(prompts=prompts, completions=completions)) for count in counts if count)


def name_of(reward: Any) -> str:
    """A reward's name in the recipe, or its own."""
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__))


def _callable(reward: Any) -> Any:
    return reward.func if isinstance(reward, ResolvedReward) else reward


def _wait_for(awaitable: Any) -> Any:
    """In a thread of its own: the caller's may have a running loop."""

    async def wait() -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, wait()).result()
