"""OREO by our `OREOTrainer`: offline reinforcement learning that yields a policy and a value function.

Paper: Wang et al., 2024 (https://huggingface.co/papers/2412.16145). For trajectories that somebody saved, right
and wrong ones, unpaired, each with a reward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.trainers import stage_rules
from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    DataRef,
    Issue,
    ModelRef,
    StageContext,
    StageFacts,
    StageResult,
)

__all__ = ["OREO"]


@dataclass
class OREO:
    """Learns from saved completions and their rewards what to write, and what a begun completion is worth.

    The critic is saved in `critic/` beside the policy, as PPO's, and is a reward again: `value_model`.

    Args:
        model: what to start from, and the reference.
        dataset: `prompt`, `completion` and `reward` (a number), or `label` (a bool); `sample` with `keep: all` makes
            it, of fresh completions or of saved ones. Rows longer than `args.max_length` are left out.
        adapter: what is trainable; everything where it is left out.
        critic: the critic's own adapter; by default the policy's, or all of a copy where the policy has none. One that
            sets up the trainer (`freeze`, `loraplus_lr_ratio`) is refused: `args.critic_learning_rate` is the critic's.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `OREOConfig`: those of `trl.DPOConfig`, and OREO's.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    critic: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("posttrain_plugins.trainers.oreo:OREOConfig")] = field(
        default_factory=dict
    )

    produces: ClassVar[str] = "model"
    reference: ClassVar[str] = "model"  # the soft Bellman equation is of the ratio to it
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("dataset", "eval_dataset"), (("prompt", "completion", "reward"), ("prompt", "completion", "label"))
    )

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield why the critic cannot be had, options that only pairs have, and the first row that is no trajectory."""
        from posttrain_plugins.trainers.ppo import rules

        yield from rules.critic_concerns(facts, has_config=self.critic is not None)
        yield from stage_rules.pair_concerns(facts.args, "OREO")
        yield from stage_rules.oreo_concerns(facts.args)
        yield from stage_rules.first_concern(facts.rows, stage_rules.trajectory_concern)

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.oreo import OREOConfig, OREOTrainer
        from posttrain_plugins.trainers.ppo import rules

        critic = context.inputs.get("critic")
        rules.check_critic(context.stage, critic)
        # `critic: {use: full}` names an adapter that is none: a critic that trains all of its own copy
        args = {"critic": "separate", **self.args} if critic and critic.config is None else self.args
        config = critic.config if critic else None
        return training.train(context, OREOTrainer, OREOConfig, args, critic_config=config)
