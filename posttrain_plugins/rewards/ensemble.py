"""`ensemble`: several rewards as one, with a penalty where they disagree.

Paper: Coste et al., 2023 (https://huggingface.co/papers/2310.02743): reward model ensembles against over-optimisation;
section 3.2: mean, worst-case, and uncertainty-weighted (mean less a multiple of the variance).

1. `deviations` takes off standard deviations, which are in the unit of the scores: a lower confidence bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from posttrain_plugins import nested_rewards
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Prompt, RewardRef

__all__ = ["Ensemble"]


@dataclass
class Ensemble:
    """Combine the scores of several rewards for each completion.

    Args:
        rewards: rewards of the recipe, stages that make one among them; in Python, callables.
        reduce: `mean`, or `min`, the worst case.
        penalty: how much of the variance is taken off, as in the paper's uncertainty-weighted form.
        deviations: how many standard deviations are taken off; both may be.

    Raises:
        InputError: there is no reward, or a price is below 0.

    Example:
        >>> def a(completions, **columns): return [1.0 for _ in completions]
        >>> def b(completions, **columns): return [0.0 for _ in completions]
        >>> Ensemble([a, b])(prompts=["?"], completions=["!"])
        [0.5]
        >>> Ensemble([a, b], penalty=1.0)(prompts=["?"], completions=["!"])
        [0.25]
        >>> Ensemble([a, b], deviations=1.0)(prompts=["?"], completions=["!"])
        [0.0]
    """

    __name__ = "ensemble"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {"rewards": ["length"]}
    oracle = nested_rewards.any_declares("oracle", "rewards")
    holds_model = nested_rewards.any_declares("holds_model", "rewards")
    count_tokens = nested_rewards.token_counter("rewards")

    rewards: list[RewardRef]
    reduce: Literal["mean", "min"] = "mean"
    penalty: float = 0.0
    deviations: float = 0.0

    def __post_init__(self) -> None:
        if not self.rewards:
            raise InputError("ensemble has no rewards", hint="rewards: [rm_a, rm_b]")
        for name in ("penalty", "deviations"):
            if getattr(self, name) < 0:  # a premium on what nobody is sure of
                raise InputError(f"ensemble cannot use {name}: {getattr(self, name)}, expected 0 or more")

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores; a reward that cannot judge a completion is left out of it, None where no reward can."""
        # Members are of a kind: the mean of four reward models is on the scale of five, so one may be left out.
        return nested_rewards.combine_rewards(
            self.rewards,
            self.reduce,
            prompts,
            completions,
            columns,
            penalty=self.penalty,
            deviations=self.deviations,
            skips_none=True,
        )
