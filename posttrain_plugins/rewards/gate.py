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

    __name__ = "gate"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {"condition": "length", "reward": "length"}
    oracle = nested_rewards.any_declares("oracle", "condition", "reward")
    holds_model = nested_rewards.any_declares("holds_model", "condition", "reward")
    count_tokens = nested_rewards.token_counter("condition", "reward")

    condition: RewardRef
    reward: RewardRef
    threshold: float = 0.5
    otherwise: float = 0.0

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores; None where the condition, or behind it the reward, cannot judge."""
        conditions = nested_rewards.call_reward(self.condition, prompts, completions, columns)
        # None stays None below: what the condition cannot judge has neither passed nor failed.
        passed = [i for i, score in enumerate(conditions) if score is not None and score >= self.threshold]
        scores = [None if score is None else self.otherwise for score in conditions]
        if passed:  # a judge or an endpoint is not called for an empty batch
            # Columns have a value for each completion; what a trainer gives beside them is the same for all.
            rows = {
                name: [value[i] for i in passed]
                if isinstance(value, list | tuple) and len(value) == len(completions)
                else value
                for name, value in columns.items()
            }
            shown = [prompts[i] for i in passed], [completions[i] for i in passed]
            for i, score in zip(passed, nested_rewards.call_reward(self.reward, *shown, rows), strict=True):
                scores[i] = score
        return scores
