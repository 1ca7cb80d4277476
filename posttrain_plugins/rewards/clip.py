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

    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {"reward": "length"}

    reward: RewardRef
    low: float = -1.0
    high: float = 1.0
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        self.__name__ = "clip"  # what TRL logs it under
        if self.low > self.high:
            raise InputError(f"clip has low: {self.low} above high: {self.high}", hint="swap them")

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high`."""
        return self.low, self.high

    @property
    def oracle(self) -> bool:
        """Whether it knows the right answer."""
        return nested_rewards.any_says([self.reward], "oracle")

    @property
    def holds_model(self) -> bool:
        """Whether it holds a model."""
        return nested_rewards.any_says([self.reward], "holds_model")

    def count_tokens(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """The tokens that scoring these reads, if it can tell."""
        return nested_rewards.count_tokens([self.reward], prompts, completions)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Score each completion.

        Args:
            prompts: B prompts.
            completions: B completions.

        Returns:
            B scores from `low` to `high`; None where the reward cannot judge.
        """
        scores = nested_rewards.scores_of(self.reward, prompts, completions, columns)
        return [None if s is None else min(self.high, max(self.low, self.scale * s + self.shift)) for s in scores]
