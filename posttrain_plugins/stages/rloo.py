"""REINFORCE leave-one-out by `trl.RLOOTrainer`.

Paper: Ahmadian et al., 2024 (https://huggingface.co/papers/2402.14740). With TRL alone: `examples/plain_trl/rloo.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    DataRef,
    Issue,
    ModelRef,
    RewardRef,
    StageContext,
    StageFacts,
    StageResult,
)

__all__ = ["RLOO"]


@dataclass
class RLOO:
    """Raises the reward of sampled completions, each against the mean of the others of its group.

    Args:
        model: the policy to start from; also the reference where `args.beta` is not 0.
        dataset: `prompt`, and the columns that the rewards need.
        rewards: rewards and reward-model stages by name; their `weight` becomes TRL's `reward_weights`. A reward model
            that is an adapter on the policy's base is loaded beside the policy's.
        adapter: what is trainable; everything where it is left out.
        vllm_server: start `vllm serve` for the rollouts, wait for it and stop it with the stage: its options, such as
            `{devices: "6,7", tensor_parallel_size: 2}`; beside `args: {use_vllm: true, vllm_mode: server}`.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        share_prompts: a prompt is computed once for all of its completions (`trainers/shared_prompts.py`): the same
            numbers up to rounding, and less time the longer prompts are.
        rollouts: who draws completions: `trainer`, so transformers' `generate` or vLLM; or `engine`, our own loop
            (`trainers/engine_rollouts.py`), which reads a prompt once for its completions: other draws of the same
            distribution.
        args: fields of `trl.RLOOConfig`.

    Raises:
        InputError: share_prompts with a model whose attention cannot do it, or with batches of one row.
    """

    model: ModelRef
    dataset: DataRef
    rewards: list[RewardRef]
    adapter: AdapterRef | None = None
    vllm_server: dict[str, Any] | None = None
    eval_dataset: DataRef | None = None
    share_prompts: bool = False
    rollouts: Literal["trainer", "engine"] = "trainer"
    args: Annotated[dict[str, Any], ConfigOf("trl:RLOOConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    reference: ClassVar[str] = "beta"  # TRL's default is not 0 here
    shares_base: ClassVar[bool] = True
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("prompt",),))

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield batches without a prompt to share, what the engine cannot draw with, and a server that cannot start."""
        from posttrain_plugins.trainers import stage_rules
        from posttrain_plugins.trainers.vllm_rules import server_concerns

        yield from server_concerns(self.vllm_server, facts)
        yield from stage_rules.speed_concerns(facts.args, self.share_prompts, self.rollouts)

    def __call__(self, context: StageContext) -> StageResult:
        from trl import RLOOConfig, RLOOTrainer

        from posttrain_plugins.trainers import training, vllm_server
        from posttrain_plugins.trainers.one_base import on_one_base

        trainer_class = on_one_base(RLOOTrainer, context.inputs["rewards"])
        faster = {"share_prompts": self.share_prompts, "rollouts": self.rollouts}
        with vllm_server.started(self.vllm_server, context) as told:
            return training.train_with_rewards(context, trainer_class, RLOOConfig, {**self.args, **told}, **faster)
