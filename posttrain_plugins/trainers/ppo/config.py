"""`PPOConfig`: TRL's `GRPOConfig`, what PPO has beside it, and where TRL 1.12's names went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import GRPOConfig

from posttrain_plugins.errors import InputError
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.trainers.ppo import rules
from posttrain_plugins.trainers.ppo.rules import Baseline, CriticKind, Estimator, KLEstimator

__all__ = ["PPOConfig"]


@dataclass
class PPOConfig(GRPOConfig):  # type: ignore[misc]
    """`trl.GRPOConfig` and what it lacks. A name that is not below is TRL's, with TRL's meaning.

    What GRPO does with groups (`scale_rewards`, `multi_objective_aggregation`) or with a KL in its loss (`beta`,
    `use_bias_correction_kl`) has no meaning here: a value other than the default is refused.

    Defaults are TRL 1.12's PPO, and for what it lacks a paper's. Other than GRPO's: `learning_rate` 3e-6,
    `num_iterations` 4 (`num_ppo_epochs`), `num_generations` 1, `loss_type` bnpo (a mean over the tokens, as 1.12) and
    `disable_dropout` true, since dropout makes the first ratio another than 1. `temperature` stays GRPO's 1.0.

    Args:
        advantage_estimator: `gae` with a critic; `reinforce`, `reinforce_pp`, `reinforce_pp_baseline`, `remax` without
            (`advantages.py`).
        gamma: discount.
        lam: GAE's lambda.
        kl_coef: price of a nat of KL against the reference, in the reward; 0 loads no reference.
        kl_estimator: `k1` or `k3`.
        kl_target: nats per completion that an adaptive `kl_coef` steers to; None keeps it fixed.
        kl_horizon: completions in which it moves by 20 % at most (10,000: Ziegler et al., 2019).
        score_clip: scores are cut to [-score_clip, score_clip].
        missing_eos_penalty: taken from the score of a completion without EOS.
        whiten_rewards: divide the tokens' rewards by their standard deviation.
        whiten_advantages: None whitens for `gae`, as TRL 1.12, and for `reinforce_pp` and `_baseline`.
        baseline: of `reinforce`: the mean return of the `batch`, or a `running` mean of the batches before.
        baseline_decay: of the running mean.
        vf_coef: weight of the value loss.
        cliprange_value: how far a value may move before its gradient is cut; None lets it move freely.
        critic: `adapter`, `shared` or `separate` (`critic.py`); None is `adapter` where the policy is one, else
            `separate`.
        critic_learning_rate: None is `learning_rate`.
        critic_warmup_steps: for so many optimizer steps only the critic learns.
        critic_iterations: passes over each rollout in which the critic learns; None is `num_iterations`. More of them
            come after the policy's and are optimizer steps too, which `max_steps` counts; a `shared` critic learns
            by its head alone in these.
        critic_max_grad_norm: the critic's gradient is clipped to it, and `max_grad_norm` is the policy's alone; None
            clips both as one.
        normalize_returns: the critic learns returns in units of their running deviation from their running mean
            (PopArt, `return_scale.py`), and so does `cliprange_value` count.
        process_rewards: names of rewards that pay by their `step_scores` (`process_rewards.py`).
        step_separator: what ends a step.
    """

    learning_rate: float = 3e-6
    num_iterations: int = 4
    num_generations: int | None = 1
    num_generations_eval: int | None = None
    loss_type: str = "bnpo"
    disable_dropout: bool = True

    advantage_estimator: Estimator = "gae"
    gamma: float = 1.0
    lam: float = 0.95
    kl_coef: float = 0.05
    kl_estimator: KLEstimator = "k1"
    kl_target: float | None = None
    kl_horizon: float = 10_000.0
    score_clip: float | None = None
    missing_eos_penalty: float | None = None
    whiten_rewards: bool = False
    whiten_advantages: bool | None = None
    baseline: Baseline = "batch"
    baseline_decay: float = 0.9
    vf_coef: float = 0.1
    cliprange_value: float | None = 0.2
    critic: CriticKind | None = None
    critic_learning_rate: float | None = None
    critic_warmup_steps: int = 0
    critic_iterations: int | None = None
    critic_max_grad_norm: float | None = None
    normalize_returns: bool = False
    process_rewards: list[str] = field(default_factory=list)
    step_separator: str = SEPARATOR

    renamed: ClassVar[dict[str, str]] = {
        "num_ppo_epochs": "num_iterations",
        "ppo_epochs": "num_iterations",
        "cliprange": "epsilon",
        "cliprange_reward": "score_clip",
        "num_mini_batches": "steps_per_generation (num_mini_batches * gradient_accumulation_steps)",
        "response_length": "max_completion_length",
        "total_episodes": "max_steps or num_train_epochs",
        "num_total_batches": "max_steps",
        "batch_size": "generation_batch_size",
        "local_batch_size": "per_device_train_batch_size and steps_per_generation",
        "mini_batch_size": "per_device_train_batch_size and gradient_accumulation_steps",
        "local_mini_batch_size": "per_device_train_batch_size and gradient_accumulation_steps",
        "micro_batch_size": "per_device_train_batch_size",
        "local_rollout_forward_batch_size": "per_device_train_batch_size, which is also the size of a rollout's passes",
        "num_sample_generations": "log_completions",
        "stop_token": "generation_kwargs: {eos_token_id: ...}",
        "stop_token_id": "generation_kwargs: {eos_token_id: ...}",
        "sft_model_path": "the trainer's model",
        "reward_model_path": "the trainer's reward_funcs",
        "model_adapter_name": "the trainer's peft_config",
        "ref_adapter_name": "the trainer's model: what it starts from is the reference",
        "dataset_num_proc": "datasets' own map(num_proc=...)",
        "init_kl_coef": "kl_coef",
        "adap_kl_ctrl": "kl_target",
        "target": "kl_target",
        "horizon": "kl_horizon",
    }
    """Names of TRL 1.12's PPO and of the one before, and what stands for them; a literal, so that `ast` can read it."""

    def __new__(cls, *args: Any, **options: Any) -> PPOConfig:
        for name in sorted(cls.renamed.keys() & options.keys()):
            raise InputError(f"PPOConfig has no '{name}'", hint=f"it is now {cls.renamed[name]}")
        return super().__new__(cls)  # type: ignore[no-any-return]

    def __post_init__(self) -> None:
        rules.refuse(rules.config_concerns(self), "PPOConfig: ")
        self.beta = self.kl_coef  # makes GRPO keep a reference and compute its log-probabilities
        if self.num_generations != 1:
            super().__post_init__()
            rules.refuse(rules.pass_concerns(self), "PPOConfig: ")
            return
        # One completion per prompt: GRPO's config refuses that, and nothing else of GRPO does. While the config checks
        # itself, it is shown a number that divides the generation batch on any number of processes.
        rows = self.per_device_train_batch_size * (self.steps_per_generation or self.gradient_accumulation_steps)
        batch = self.generation_batch_size or rows
        if batch < 2:
            raise InputError(
                "PPOConfig: a rollout has one completion, expected 2 at least",
                hint="raise per_device_train_batch_size or steps_per_generation",
            )
        self.num_generations = batch
        self.num_generations_eval = self.num_generations_eval or 1
        super().__post_init__()
        self.num_generations = 1
        rules.refuse(rules.pass_concerns(self), "PPOConfig: ")  # again: what was left out is known only now

    @property
    def has_critic(self) -> bool:
        return self.advantage_estimator == "gae"

    @property
    def whitens(self) -> bool:
        """Are the advantages whitened?"""
        if self.whiten_advantages is not None:
            return self.whiten_advantages
        return self.advantage_estimator in ("gae", "reinforce_pp", "reinforce_pp_baseline")
