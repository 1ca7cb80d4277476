"""GRPO with process supervision (Shao et al., 2024, https://huggingface.co/papers/2402.03300, section 4.1.3).

A token's advantage is the sum of the normalised rewards of the steps that end at it or later. All else is TRL's.

1. Rewards that are not in `process_rewards` add GRPO's outcome advantage to every token, normalised by themselves.
2. `scale_rewards: none` only takes the mean from step rewards; `batch` scales them by their group, as `group`.
3. `multi_objective_aggregation: normalize_then_sum` is refused: what it would normalise, 1. already says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from posttrain_plugins.errors import InputError
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.trainers.ppo import advantages, process_rewards, rules
from posttrain_plugins.trainers.ppo.shared_reward import WithSharedRewards

__all__ = ["ProcessGRPOTrainer"]


class ProcessGRPOTrainer(WithSharedRewards, GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` whose advantages are of tokens, by the steps that they belong to.

    Args:
        *args: of `GRPOTrainer`.
        process_rewards: names of rewards that judge by their `step_scores`, in place of the whole completion.
        step_separator: what ends a step.
        **kwargs: of `GRPOTrainer`.

    Raises:
        InputError: no process reward is named, or one that cannot judge steps; or another aggregation is asked for.

    Example:
        ```python
        trainer = ProcessGRPOTrainer(
            model="Qwen/Qwen2.5-0.5B-Instruct",
            reward_funcs=[accuracy_reward, prm],
            process_rewards=["process_reward_model"],
            train_dataset=dataset,
        )
        ```
    """

    def __init__(
        self, *args: Any, process_rewards: Sequence[str], step_separator: str = SEPARATOR, **kwargs: Any
    ) -> None:
        if not process_rewards:
            raise InputError("process_rewards is empty", hint="name a reward with step_scores, or use GRPOTrainer")
        config = kwargs.get("args") or next((given for given in args if isinstance(given, GRPOConfig)), None)
        if config is not None:
            rules.refuse(rules.aggregation_concerns(config), "ProcessGRPOTrainer: ")
        self.process_rewards = list(process_rewards)
        self.step_separator = step_separator
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer` does, after a look at the names of the process rewards."""
        # not in `__init__`: the names in the logs, which `process_rewards` gives, may be set after it
        process_rewards.check(self, self.process_rewards)
        return super().train(*args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        with process_rewards.stepwise(self, self.process_rewards) as steps:
            rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._judged = rewards, steps, completion_ids_list
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"].float()  # (B, T)
        rewards, steps, ids = self._judged
        # GRPO's loss takes (B, T) too, and its buffer shuffles and splits them like its own (B,)
        by_outcome = self._by_outcome(rewards, steps, len(ids)).unsqueeze(1)  # (B, 1)
        output["advantages"] = (by_outcome + self._by_steps(steps, ids, mask)) * mask
        return output

    def _by_outcome(self, rewards: Tensor, steps: process_rewards.StepScores, count: int) -> Tensor:
        """Return GRPO's own advantage, (B,), from the rewards that judge whole completions; 0 where none does."""
        # what pays by its steps is logged with their sum, which must not count a second time for the whole
        outcome = [i for i in range(rewards.size(1)) if i not in steps]
        own = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        if not outcome:
            return torch.zeros_like(rewards[own, 0])
        rewards = rewards[:, outcome]
        scores = (rewards * self.reward_weights.to(rewards.device)[outcome]).nansum(1)  # (N,)
        scores = scores.masked_fill(torch.isnan(rewards).all(1), torch.nan)
        return advantages.group_normalized(scores, self._group_size(), self.scale_rewards)[own]

    def _by_steps(self, steps: process_rewards.StepScores, ids: Sequence[Sequence[int]], mask: Tensor) -> Tensor:
        """Return the weighted sum over the process rewards, (B, T)."""
        start = self.accelerator.process_index * len(ids)
        normal = {}
        # each reward by itself, before they are weighed: one of large scores would drown the others in the deviation
        for i, scores in steps.items():
            everyone = gather_object(scores)  # a group may be on two processes
            found = advantages.normalized_steps(everyone, self._group_size(), scale=self.scale_rewards != "none")
            normal[i] = found[start : start + len(ids)]
        placed = process_rewards.place(self, normal, ids, self.step_separator)
        weights = self.reward_weights.to(mask.device)
        rewards = [weights[i] * process_rewards.as_tensor(rows, mask) for i, rows in placed.items()]
        return advantages.returns_to_go(torch.stack(rewards).sum(0) * mask, mask)

    def _group_size(self) -> int:
        return int(self.num_generations if self.model.training else self.num_generations_eval)
