"""`gate`: a reward that counts only where another one is met, such as style where the answer is right.

Paper: a rule in front of a learned reward, against reward hacking, as in DeepSeek-R1's rule-based rewards
(https://huggingface.co/papers/2501.12948, section 2.2.2) and Tulu 3's verifiable rewards
(https://huggingface.co/papers/2411.15124, section 6), where a completion that fails its check is worth nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins import nested_rewards
from posttrain_plugins.types import Prompt, RewardRef

__all__ = ["Gate"]


@dataclass
class Gate:
    """Give `reward` where `condition` reaches the threshold, and `otherwise` elsewhere.

    Args:
        condition: a reward of the recipe; in Python, a callable.
        reward: what counts behind the gate; completions before it are not shown to it, which saves a judge's time.
        threshold: the gate is open from here.
        otherwise: the score of a completion that does not pass.

    Example:
        >>> def polite(completions, **columns): return [float("please" in text) for text in completions]
        >>> def short(completions, **columns): return [1 / len(text) for text in completions]
        >>> Gate(polite, short)(prompts=["?", "?"], completions=["please", "no"])
        [0.16666666666666666, 0.0]
    """

    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {"condition": "length", "reward": "length"}

    condition: RewardRef
    reward: RewardRef
    threshold: float = 0.5
    otherwise: float = 0.0

    def __post_init__(self) -> None:
        self.__name__ = "gate"  # what TRL logs it under

    @property
    def oracle(self) -> bool:
        """Whether one of the two knows the right answer."""
        return nested_rewards.any_says([self.condition, self.reward], "oracle")

    @property
    def holds_model(self) -> bool:
        """Whether one of the two holds a model."""
        return nested_rewards.any_says([self.condition, self.reward], "holds_model")

    def count_tokens(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """The tokens that scoring these reads at most, by those that can tell."""
        return nested_rewards.count_tokens([self.condition, self.reward], prompts, completions)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Score each completion.

        Args:
            prompts: B prompts.
            completions: B completions.

        Returns:
            B scores; None where the condition, or behind it the reward, cannot judge.
        """
        opened = nested_rewards.scores_of(self.condition, prompts, completions, columns)
        passed = [i for i, score in enumerate(opened) if score is not None and score >= self.threshold]
        shown = {name: _chosen(value, passed, len(completions)) for name, value in columns.items()}
        behind = iter(
            nested_rewards.scores_of(self.reward, [prompts[i] for i in passed], [completions[i] for i in passed], shown)
            if passed
            else ()
        )
        is_open = set(passed)
        return [
            next(behind) if i in is_open else None if score is None else self.otherwise
            for i, score in enumerate(opened)
        ]


def _chosen(value: Any, rows: Sequence[int], count: int) -> Any:
    return [value[i] for i in rows] if isinstance(value, list | tuple) and len(value) == count else value
