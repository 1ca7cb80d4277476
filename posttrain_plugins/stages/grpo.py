"""Group-relative policy optimisation by `trl.GRPOTrainer`, all losses of TRL.

Paper: Shao et al., 2024 (https://huggingface.co/papers/2402.03300). With TRL alone: `examples/plain_trl/grpo.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    DataRef,
    Issue,
    ModelRef,
    ObjectRef,
    RewardRef,
    StageContext,
    StageFacts,
    StageResult,
    StrategyRef,
    ToolRef,
)

__all__ = ["GRPO"]


@dataclass
class GRPO:
    """Raises the reward of sampled completions, each against the mean of its group, or of tokens by their steps.

    With `process_rewards` it is the paper's process supervision (section 4.1.3); without, TRL's trainer as it is.

    Args:
        model: the policy to start from; also the reference where `args.beta` is not 0.
        dataset: `prompt`, and the columns that the rewards need.
        rewards: rewards and reward-model stages by name; their `weight` becomes TRL's `reward_weights`. A reward model
            that is an adapter on the policy's base is loaded beside the policy's.
        adapter: what is trainable; everything where it is left out.
        strategy: who makes the rollouts, in place of plain draws; `trainers/strategy_rollouts.py` says what it biases.
        tools: what the policy may call; its completions are then trajectories (`trainers/tool_use.py`).
        environment_factory: a class with `reset` and a method for each tool, an object of it for each trajectory; or a
            mapping of such classes, by what the rows' column `environment` says.
        max_trajectory_s: seconds after which a rollout's trajectories call no tool any more; None sets no limit.
        vllm_server: start `vllm serve` for the rollouts, wait for it and stop it with the stage: its options, such as
            `{devices: "6,7", tensor_parallel_size: 2}`; beside `args: {use_vllm: true, vllm_mode: server}`.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        process_rewards: names of rewards that judge by their `step_scores`, in place of the whole completion.
        separator: what ends a step (`posttrain_plugins.text.steps`).
        share_prompts: a prompt is computed once for all of its completions (`trainers/shared_prompts.py`): the same
            numbers up to rounding, and less time the longer prompts are.
        rollouts: who draws completions: `trainer`, so transformers' `generate` or vLLM; or `engine`, our own loop
            (`trainers/engine_rollouts.py`), which reads a prompt once for its completions: other draws of the same
            distribution.
        args: fields of `trl.GRPOConfig`.

    Raises:
        InputError: a strategy with tools, or beside arguments that it leaves no meaning; tools that cannot be called;
            share_prompts with a model whose attention cannot do it, or with batches of one row.
    """

    model: ModelRef
    dataset: DataRef
    rewards: list[RewardRef]
    adapter: AdapterRef | None = None
    strategy: StrategyRef | None = None
    tools: list[ToolRef] = field(default_factory=list)
    environment_factory: ObjectRef | None = None
    max_trajectory_s: float | None = None
    vllm_server: dict[str, Any] | None = None
    eval_dataset: DataRef | None = None
    process_rewards: list[str] = field(default_factory=list)
    separator: str = SEPARATOR
    share_prompts: bool = False
    rollouts: Literal["trainer", "engine"] = "trainer"
    args: Annotated[dict[str, Any], ConfigOf("trl:GRPOConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    reference: ClassVar[str] = "beta"  # at TRL's default, 0, there is none
    shares_base: ClassVar[bool] = True
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("prompt",),))

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Process rewards that cannot judge steps, and arguments that a strategy leaves no meaning."""
        from posttrain_plugins.trainers.ppo import rules

        yield from rules.step_concerns(self.process_rewards, facts.judges_steps, "process_rewards")
        if self.process_rewards:
            yield from rules.aggregation_concerns(facts.args)
        from posttrain_plugins.trainers import tool_rules

        by_steps = self.process_rewards
        limits = {"max_trajectory_s": self.max_trajectory_s}
        others = {"strategy": self.strategy, "process_rewards": by_steps, **limits}
        yield from tool_rules.rollout_concerns(self.tools, self.environment_factory, self.rewards, facts, **others)
        from posttrain_plugins.trainers.vllm_rules import server_concerns

        yield from server_concerns(self.vllm_server, facts)
        if self.strategy is not None:
            from posttrain_plugins.trainers import strategy_rollouts

            yield from strategy_rollouts.issues(facts.args)
        from posttrain_plugins.trainers import stage_rules

        has_strategy = self.strategy is not None
        yield from stage_rules.speed_concerns(facts.args, self.share_prompts, self.rollouts, has_strategy)

    def __call__(self, context: StageContext) -> StageResult:
        from trl import GRPOConfig, GRPOTrainer

        from posttrain_plugins.trainers import strategy_rollouts, tool_use, training, vllm_server
        from posttrain_plugins.trainers.one_base import on_one_base

        made_by = strategy_rollouts.hook(context) | tool_use.given_tools(context)
        made_by |= {"share_prompts": self.share_prompts, "rollouts": self.rollouts}
        made_by["max_trajectory_s"] = self.max_trajectory_s
        if not self.process_rewards:  # TRL's own class, so that the numbers are those of a plain script
            trainer_class = on_one_base(GRPOTrainer, context.inputs["rewards"])
            with vllm_server.started(self.vllm_server, context) as told:
                args = {**self.args, **told}
                return training.train_with_rewards(context, trainer_class, GRPOConfig, args, **made_by)
        from posttrain_plugins.trainers.ppo import process_rewards
        from posttrain_plugins.trainers.process_grpo import ProcessGRPOTrainer

        # the plan has asked the classes; the objects are asked before a model is loaded
        process_rewards.check_names({r.name: r.func for r in context.inputs["rewards"]}, self.process_rewards)
        by_steps = {"process_rewards": self.process_rewards, "step_separator": self.separator}
        with vllm_server.started(self.vllm_server, context) as told:
            args = {**self.args, **told}
            return training.train_with_rewards(context, ProcessGRPOTrainer, GRPOConfig, args, **by_steps, **made_by)
