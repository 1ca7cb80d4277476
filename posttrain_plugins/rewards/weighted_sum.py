"""`weighted_sum`: several rewards as one number, each with its weight. No paper.

A recipe's `weight` does the same where a stage takes several rewards; this is for the places that take one: the first
reward of `sample`, a strategy's scorer, the parts of `gate` and `clip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from posttrain_plugins import nested_rewards
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Prompt, RewardRef

__all__ = ["WeightedSum"]


@dataclass
class WeightedSum:
    """Add up rewards; one that cannot judge a completion leaves it unjudged, so that no sum is of other parts.

    Args:
        rewards: rewards of the recipe; in Python, callables.
        weights: one for each; 1.0 where there are none.

    Raises:
        InputError: there is no reward, or another number of weights.

    Example:
        >>> def right(completions, **columns): return [1.0 for _ in completions]
        >>> def long(completions, **columns): return [len(text) / 10 for text in completions]
        >>> WeightedSum([right, long], weights=[1.0, -0.5])(prompts=["?"], completions=["four"])
        [0.8]
    """

    __name__ = "weighted_sum"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {"rewards": ["length"]}
    oracle = nested_rewards.any_declares("oracle", "rewards")
    holds_model = nested_rewards.any_declares("holds_model", "rewards")
    count_tokens = nested_rewards.token_counter("rewards")

    rewards: list[RewardRef]
    weights: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.rewards:
            raise InputError("weighted_sum has no rewards", hint="rewards: [correct, format]")
        if self.weights and len(self.weights) != len(self.rewards):
            message = f"weighted_sum has {len(self.weights)} weights for {len(self.rewards)} rewards"
            raise InputError(message, hint="give one weight for each reward")

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B sums; None where a reward cannot judge."""
        # None where one cannot judge: a sum of fewer parts is on another scale, and its advantage would be of that.
        return nested_rewards.combine_rewards(self.rewards, "sum", prompts, completions, columns, weights=self.weights)
