"""Rewards that are made of other rewards: how these are called and combined, and what they declare together."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from statistics import fmean, pstdev, pvariance
from typing import Any, Literal

from posttrain_plugins.errors import PluginBroken
from posttrain_plugins.types import Prompt, ResolvedReward

__all__ = ["any_declares", "call_reward", "combine_rewards", "token_counter", "wait_for"]


def call_reward(
    reward: Any, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Mapping[str, Any]
) -> list[float | None]:
    """Return what another reward gives; an asynchronous one is waited for.

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
    scores = list(wait_for(found) if inspect.isawaitable(found) else found)
    if len(scores) != len(completions):
        name = getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__)
        raise PluginBroken(f"reward '{name}' gave {len(scores)} scores, expected {len(completions)}")
    # NaN is what TRL makes of None on its way through a tensor.
    return [None if score is None or score != score else float(score) for score in scores]


def combine_rewards(
    rewards: Sequence[Any],
    how: Literal["mean", "min", "sum"],
    prompts: Sequence[Prompt],
    completions: Sequence[Prompt],
    columns: Mapping[str, Any],
    *,
    weights: Sequence[float] = (),
    penalty: float = 0.0,
    deviations: float = 0.0,
    skips_none: bool = False,
) -> list[float | None]:
    """Return one score for each completion from those of several rewards.

    Args:
        rewards: R rewards of the recipe, or callables.
        how: what becomes of a completion's scores.
        prompts: B prompts.
        completions: B completions.
        columns: further arguments of the calls.
        weights: R factors; without them each is 1.
        penalty: how much of the scores' variance is taken off.
        deviations: how many of their standard deviations are.
        skips_none: combine the scores of those that can judge; else all have to.

    Returns:
        B scores; None where nothing can be said.
    """
    reductions: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "min": min, "sum": sum}
    by_reward = [call_reward(reward, prompts, completions, columns) for reward in rewards]
    combined: list[float | None] = []
    for of_one in zip(*by_reward, strict=True):
        pairs = zip(weights or [1.0] * len(rewards), of_one, strict=True)
        known = [weight * score for weight, score in pairs if score is not None]
        if not known or (len(known) < len(of_one) and not skips_none):
            combined.append(None)
        else:
            apart = (penalty * pvariance(known) if penalty else 0.0) + (
                deviations * pstdev(known) if deviations else 0.0
            )
            combined.append(float(reductions[how](known) - apart))
    return combined


def wait_for(awaitable: Awaitable[Any]) -> Any:
    """Return what a coroutine gives, to a caller that is none."""
    import asyncio

    async def wait() -> Any:  # `asyncio.run` takes coroutines only, and a reward may return any awaitable
        return await awaitable

    with ThreadPoolExecutor(1) as pool:  # the caller's own thread may have a running loop: a notebook, a trainer
        return pool.submit(copy_context().run, asyncio.run, wait()).result()


def any_declares(attribute: str, *fields: str, without: bool = False) -> property:
    """Return a property for a reward's class: does one of the rewards that it is made of declare this?

    Args:
        attribute: `oracle` or `holds_model`.
        fields: the class's fields that hold a reward, or several.
        without: the answer for a field that is None.
    """

    def declares(self: Any) -> bool:
        return any(
            without if reward is None else bool(getattr(_callable(reward), attribute, False))
            for reward in _rewards_in(self, fields)
        )

    return property(declares)


def token_counter(*fields: str) -> Callable[..., int]:
    """Return the method `count_tokens` for a reward's class: the sum over the rewards in these fields that can tell."""

    def count_tokens(self: Any, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """Count the tokens that scoring these reads, by those rewards that can tell."""
        counts = [getattr(_callable(reward), "count_tokens", None) for reward in _rewards_in(self, fields)]
        return sum(int(count(prompts=prompts, completions=completions)) for count in counts if count)

    return count_tokens


def _rewards_in(owner: Any, fields: Sequence[str]) -> Iterator[Any]:
    for name in fields:
        value = getattr(owner, name)
        yield from value if isinstance(value, list | tuple) else [value]


def _callable(reward: Any) -> Any:
    return reward.func if isinstance(reward, ResolvedReward) else reward
