"""`clip`: another reward kept within bounds, and on a scale of its own.

Paper: reward clipping, Mnih et al., 2015 (https://doi.org/10.1038/nature14236, Methods); for reward models a bounded
reward is the first defence against over-optimisation (https://huggingface.co/papers/2210.10760).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins import nested_rewards
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Prompt, RewardRef

__all__ = ["Clip"]


@dataclass
class Clip:
    """Bring a reward to `scale * score + shift`, and then within bounds.

    Args:
        reward: a reward of the recipe; in Python, a callable.
        low: the least that is given.
        high: the most that is given.
        scale: what the score is multiplied by first.
        shift: what is added then.

    Raises:
        InputError: `low` is above `high`.

    Example:
        >>> def logits(completions, **columns): return [float(text) for text in completions]
        >>> Clip(logits, low=0.0, high=1.0, scale=0.1, shift=0.5)(prompts=["?"] * 3, completions=["-9", "2", "70"])
        [0.0, 0.7, 1.0]
    """

    __name__ = "clip"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {"reward": "length"}
    oracle = nested_rewards.any_declares("oracle", "reward")
    holds_model = nested_rewards.any_declares("holds_model", "reward")
    count_tokens = nested_rewards.token_counter("reward")

    reward: RewardRef
    low: float = -1.0
    high: float = 1.0
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise InputError(f"clip has low: {self.low} above high: {self.high}", hint="swap them")

    @property
    def bounds(self) -> tuple[float, float]:
        """From `low` to `high`."""
        return self.low, self.high

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores from `low` to `high`; None where the reward cannot judge."""
        # Scaled first: the bounds are in the units of what is given, so that they hold whatever the reward's own are.
        scores = nested_rewards.call_reward(self.reward, prompts, completions, columns)
        return [None if s is None else min(self.high, max(self.low, self.scale * s + self.shift)) for s in scores]
