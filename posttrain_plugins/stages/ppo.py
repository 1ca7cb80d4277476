"""Proximal policy optimisation by our `PPOTrainer` (Schulman et al., 2017, https://huggingface.co/papers/1707.06347).

REINFORCE, REINFORCE++ and ReMax too: `args.advantage_estimator`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    CriticRef,
    DataRef,
    Issue,
    ModelRef,
    ObjectRef,
    ResolvedCritic,
    RewardRef,
    StageContext,
    StageFacts,
    StageResult,
    StrategyRef,
    ToolRef,
)

__all__ = ["PPO"]


@dataclass
class PPO:
    """Raises the reward of sampled completions, each token against what a critic expected.

    The critic is saved in `critic/` beside the policy, and is a reward again: `value_model`.

    Args:
        model: the policy to start from; also the reference, unless `args.kl_coef` is 0.
        dataset: `prompt`, and the columns that the rewards need.
        rewards: functions, reward-model stages and process reward models by name, each with its `weight`. A reward
            model that is an adapter on the policy's base is loaded beside the policy's; those that
            `args.process_rewards` names pay by steps.
        adapter: what is trainable; everything where it is left out.
        critic: the critic's own adapter; by default the policy's, or all of a copy where the policy has none. One that
            sets up the trainer (`freeze`, `loraplus_lr_ratio`) is refused: `args.critic_learning_rate` is the critic's.
            Or `{kind: adapter | shared | separate, from: STAGE}`: it starts with the values of a stage `value`, a
            reward model or another policy's critic, a folder too; each of both may be left out.
        strategy: who makes the rollouts, in place of plain draws; `trainers/strategy_rollouts.py` says what it biases.
        tools: what the policy may call; its completions are then trajectories (`trainers/tool_use.py`).
        environment_factory: a class with `reset` and a method for each tool, an object of it for each trajectory; or a
            mapping of such classes, by what the rows' column `environment` says.
        max_trajectory_s: seconds after which a rollout's trajectories call no tool any more; None sets no limit.
        vllm_server: start `vllm serve` for the rollouts, wait for it and stop it with the stage: its options, such as
            `{devices: "6,7", tensor_parallel_size: 2}`; beside `args: {use_vllm: true, vllm_mode: server}`.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        share_prompts: a prompt is computed once for all of its completions, by the critic too
            (`trainers/shared_prompts.py`): the same numbers up to rounding, and less time the longer prompts are.
        rollouts: who draws completions: `trainer`, so transformers' `generate` or vLLM; or `engine`, our own loop
            (`trainers/engine_rollouts.py`), which reads a prompt once for its completions: other draws of the same
            distribution.
        args: fields of `PPOConfig`: TRL's `GRPOConfig`, and PPO's.

    Raises:
        InputError: a strategy with tools, or beside arguments that it leaves no meaning; tools that cannot be called;
            share_prompts with a model whose attention cannot do it, or with batches of one row.
    """

    model: ModelRef
    dataset: DataRef
    rewards: list[RewardRef]
    adapter: AdapterRef | None = None
    critic: CriticRef | None = None
    strategy: StrategyRef | None = None
    tools: list[ToolRef] = field(default_factory=list)
    environment_factory: ObjectRef | None = None
    max_trajectory_s: float | None = None
    vllm_server: dict[str, Any] | None = None
    eval_dataset: DataRef | None = None
    share_prompts: bool = False
    rollouts: Literal["trainer", "engine"] = "trainer"
    args: Annotated[dict[str, Any], ConfigOf("posttrain_plugins.trainers.ppo.trainer:PPOConfig")] = field(
        default_factory=dict
    )

    produces: ClassVar[str] = "model"
    reference: ClassVar[str] = "kl_coef"  # not `beta`, which follows it
    shares_base: ClassVar[bool] = True
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("prompt",),))

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield what PPO cannot do with these settings, and warn of a critic for which there is no memory."""
        from posttrain_plugins.trainers.ppo import rules

        yield from rules.config_concerns(facts.args)
        started = self.critic if isinstance(self.critic, dict) else None
        has_config = self.critic is not None and started is None
        yield from rules.critic_concerns(facts, has_config=has_config, given=started)
        yield from rules.step_concerns(facts.args.process_rewards, facts.judges_steps, "args.process_rewards")
        from posttrain_plugins.trainers import tool_rules

        by_steps = facts.args.process_rewards
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
        from posttrain_plugins.trainers import strategy_rollouts, tool_use, training, vllm_server
        from posttrain_plugins.trainers.ppo import process_rewards, rules
        from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer

        rewards = context.inputs["rewards"]
        # the plan has asked the classes; the objects are asked before a model is loaded
        process_rewards.check_names({r.name: r.func for r in rewards}, self.args.get("process_rewards", ()))
        critic = context.inputs.get("critic")
        rules.check_critic(context.stage, critic)
        # `critic: {use: full}` names an adapter that is none: a critic that trains all of its own copy
        args, config, start = self.args, None, None
        if isinstance(critic, ResolvedCritic):
            args, start = {"critic": critic.kind, **args} if critic.kind else args, critic.start
        elif critic is not None:
            args, config = args if critic.config else {"critic": "separate", **args}, critic.config
        with vllm_server.started(self.vllm_server, context) as told:
            return training.train_with_rewards(
                context,
                PPOTrainer,
                PPOConfig,
                {**args, **told},
                critic_config=config,
                critic_from=start,
                max_trajectory_s=self.max_trajectory_s,
                share_prompts=self.share_prompts,
                rollouts=self.rollouts,
                # a reward model as its plugin: any tokenizer, and adapters
                **{"reward_funcs": [r.func for r in rewards], **strategy_rollouts.hook(context)},
                **tool_use.given_tools(context),
            )
