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

    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {"rewards": ["length"]}

    rewards: list[RewardRef]

    def __post_init__(self) -> None:
        self.__name__ = "min"  # what TRL logs it under
        if not self.rewards:
            raise InputError("min has no rewards", hint="rewards: [helpful, harmless]")

    @property
    def oracle(self) -> bool:
        """Whether one of them knows the right answer."""
        return nested_rewards.any_says(self.rewards, "oracle")

    @property
    def holds_model(self) -> bool:
        """Whether one of them holds a model."""
        return nested_rewards.any_says(self.rewards, "holds_model")

    def count_tokens(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """The tokens that scoring these reads, by those that can tell."""
        return nested_rewards.count_tokens(self.rewards, prompts, completions)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Score each completion.

        Args:
            prompts: B prompts.
            completions: B completions.

        Returns:
            B scores; None where a reward cannot judge.
        """
        parts = [nested_rewards.scores_of(reward, prompts, completions, columns) for reward in self.rewards]
        return [_least(of_one) for of_one in zip(*parts, strict=True)]


def _least(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return min(known) if len(known) == len(scores) else None
