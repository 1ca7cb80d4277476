"""`min`: the worst of several rewards; a completion is as good as its weakest side.

Paper: worst-case optimisation over an ensemble, Coste et al., 2023 (https://huggingface.co/papers/2310.02743, section
3.2); here the parts may be different in kind. Rewards on different scales are compared as they are: `clip` scales one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins import nested_rewards
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Prompt, RewardRef

__all__ = ["Min"]


@dataclass
class Min:
    """Give the smallest of several scores; one that cannot judge a completion leaves it unjudged.

    Args:
        rewards: rewards of the recipe; in Python, callables.

    Raises:
        InputError: there is no reward.

    Example:
        >>> def right(completions, **columns): return [1.0 for _ in completions]
        >>> def long(completions, **columns): return [len(text) / 10 for text in completions]
        >>> Min([right, long])(prompts=["?"], completions=["four"])
        [0.4]
    """

    __name__ = "min"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {"rewards": ["length"]}
    oracle = nested_rewards.any_declares("oracle", "rewards")
    holds_model = nested_rewards.any_declares("holds_model", "rewards")
    count_tokens = nested_rewards.token_counter("rewards")

    rewards: list[RewardRef]

    def __post_init__(self) -> None:
        if not self.rewards:
            raise InputError("min has no rewards", hint="rewards: [helpful, harmless]")

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores; None where a reward cannot judge."""
        # None where one cannot judge: the side that is not seen may be the weakest.
        return nested_rewards.combine_rewards(self.rewards, "min", prompts, completions, columns)
