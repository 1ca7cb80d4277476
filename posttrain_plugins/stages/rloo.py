"""REINFORCE leave-one-out by `trl.RLOOTrainer`.

Paper: Ahmadian et al., 2024 (https://huggingface.co/papers/2402.14740). With TRL alone: `examples/plain_trl/rloo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelRef, RewardRef, StageContext, StageResult

__all__ = ["RLOO"]


@dataclass
class RLOO:
    """Raises the reward of sampled completions, each against the mean of the others of its group.

    Args:
        model: the policy to start from; also the reference where `args.beta` is not 0.
        dataset: `prompt`, and the columns that the rewards need.
        rewards: rewards and reward-model stages by name; their `weight` becomes TRL's `reward_weights`.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `trl.RLOOConfig`.
    """

    model: ModelRef
    dataset: DataRef
    rewards: list[RewardRef]
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:RLOOConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    reference: ClassVar[str] = "beta"  # TRL's default is not 0 here
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("prompt",),))

    def __call__(self, context: StageContext) -> StageResult:
        from trl import RLOOConfig, RLOOTrainer

        from posttrain_plugins.trainers import training

        return training.train_with_rewards(context, RLOOTrainer, RLOOConfig, self.args)
