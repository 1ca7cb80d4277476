"""What PPO can be set to, and what it cannot do: asked by the recipe's check, by `PPOConfig` and by `PPOTrainer`.

`PPOConfig` refuses what cannot work whatever the model; the stage's check, which has no torch yet, adds what the recipe
tells of model and rewards; the trainer, what only a model in memory shows.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from posttrain_plugins.checkpoints import generation_period
from posttrain_plugins.errors import InputError
from posttrain_plugins.models import adapter_compatibility
from posttrain_plugins.models.adapter_types import shares_base
from posttrain_plugins.trainers import compat
from posttrain_plugins.types import Issue, ResolvedAdapter, StageFacts

__all__ = [
    "Baseline",
    "CriticKind",
    "Estimator",
    "KLEstimator",
    "aggregation_concerns",
    "check_critic",
    "check_reference_weights",
    "check_start",
    "check_warm_up",
    "choice_concerns",
    "choose_kind",
    "config_concerns",
    "critic_concerns",
    "refuse",
    "step_concerns",
    "warn_within_generation",
]

Estimator: TypeAlias = Literal["gae", "reinforce", "reinforce_pp", "reinforce_pp_baseline", "remax"]
"""How advantages are estimated: the table in `advantages.py`. `gae` alone has a critic."""
KLEstimator: TypeAlias = Literal["k1", "k3"]
Baseline: TypeAlias = Literal["batch", "running"]
CriticKind: TypeAlias = Literal["adapter", "shared", "separate"]
"""On which body the value head is: the table in `critic.py`."""

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "advantage_estimator": get_args(Estimator),
    "kl_estimator": get_args(KLEstimator),
    "baseline": get_args(Baseline),
    "critic": (*get_args(CriticKind), None),
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"),  # of TRL's, those that take token advantages
}
UNUSED_OF_GRPO: Mapping[str, tuple[tuple[Any, ...], str, str]] = {
    "scale_rewards": (
        ("group", True),
        "PPO's advantages are of tokens, not of groups",
        "whiten_rewards and whiten_advantages scale here",
    ),
    "multi_objective_aggregation": (
        ("sum_then_normalize",),
        "PPO adds the rewards of a completion by their weights",
        "set reward_weights, or use stage grpo",
    ),
    "use_bias_correction_kl": ((True,), "PPO's KL stands in the reward", "kl_estimator says how it is estimated"),
}
"""Arguments of GRPO without effect here: what may stand there, GRPO's default, and why nothing else."""
RANGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("0 to 1", ("gamma", "lam", "baseline_decay")),
    ("0 or more", ("kl_coef", "vf_coef", "missing_eos_penalty", "critic_learning_rate", "critic_warmup_steps")),
    ("more than 0", ("kl_target", "cliprange_value", "score_clip", "kl_horizon")),
)
"""What a number has to be; None, where a field may be it, is fine."""
OF_THE_CRITIC = ("critic", "critic_learning_rate", "critic_warmup_steps")
BYTES = {"bfloat16": 2, "float16": 2, "half": 2}
COPIES_IN_TRAINING = 4  # weights, gradients, and the two moments of Adam


def refuse(issues: Iterable[Issue], who: str = "") -> None:
    """Raise the first of some issues, if there is one.

    Raises:
        InputError: with its message, behind `who`.
    """
    for issue in issues:
        raise InputError(who + issue.message, hint=issue.hint)


# --- settings --------------------------------------------------------------------------------------------------------


def choice_concerns(args: Any, choices: Mapping[str, tuple[Any, ...]]) -> Iterator[Issue]:
    """Yield every field of a config whose value is none of its choices."""
    for name, allowed in choices.items():
        if getattr(args, name) not in allowed:
            expected = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
            yield Issue(f"{name} is {getattr(args, name)!r}, expected {expected}", field=f"args.{name}")


def config_concerns(args: Any) -> Iterator[Issue]:
    """Yield what cannot work, whatever the model; `args` is a `PPOConfig`, or has its fields."""
    yield from choice_concerns(args, CHOICES)
    if args.beta not in (0.0, args.kl_coef):
        yield Issue(f"beta is {args.beta}, but PPO's KL stands in the reward", "set kl_coef instead", "args.beta")
    for name, (allowed, reason, hint) in UNUSED_OF_GRPO.items():
        if getattr(args, name) not in allowed:
            yield Issue(f"{name} is {getattr(args, name)!r}, but {reason}", hint, f"args.{name}")
    for expected, names in RANGES:
        for name in names:
            value = getattr(args, name)
            is_above = value is None or (value > 0 if expected == "more than 0" else value >= 0)
            if not is_above or (expected == "0 to 1" and value > 1):
                yield Issue(f"{name} is {value}, expected {expected}", field=f"args.{name}")
    if args.step_separator == "":
        yield Issue("step_separator is , expected some characters", field="args.step_separator")
    if args.kl_target is not None and args.kl_coef == 0:
        hint = "set kl_coef to where it should start"
        yield Issue("kl_target adapts kl_coef, which is 0", hint, "args.kl_target")
    if args.advantage_estimator == "reinforce_pp_baseline" and (args.num_generations or 0) < 2:
        found = "reinforce_pp_baseline compares the completions of a prompt, but num_generations is 1"
        yield Issue(found, "set num_generations to 2 or more", "args.advantage_estimator")
    unused = [name for name in OF_THE_CRITIC if getattr(args, name)]
    if unused and args.advantage_estimator != "gae":
        found = f"{unused[0]} is set, but {args.advantage_estimator} has no critic"
        yield Issue(found, f"remove {unused[0]}", f"args.{unused[0]}")


def aggregation_concerns(args: Any) -> Iterator[Issue]:
    """Yield an aggregation of rewards that process supervision has no place for.

    It normalises each process reward by itself and adds all by their weights, whatever is asked for.
    """
    if args.multi_objective_aggregation != "sum_then_normalize":
        found = (
            f"multi_objective_aggregation is '{args.multi_objective_aggregation}', but process_rewards leave no choice"
        )
        hint = "remove it: each process reward is normalised by itself, the others are added first"
        yield Issue(found, hint, "args.multi_objective_aggregation")


def step_concerns(names: Iterable[str] | None, judges_steps: Mapping[str, bool], field: str = "") -> Iterator[Issue]:
    """Yield process rewards that are no reward of the stage, or cannot judge steps."""
    for name in names or ():
        if name not in judges_steps:
            known = ", ".join(judges_steps)
            yield Issue(f"process_rewards names no reward: '{name}', expected one of {known}", field=field)
        elif not judges_steps[name]:
            found = f"reward '{name}' is in process_rewards, but it has no step_scores"
            yield Issue(found, "use one that judges steps, such as process_reward_model", field)


# --- the critic ------------------------------------------------------------------------------------------------------


def kind_concerns(kind: CriticKind, trained: str | None, has_config: bool, is_quantized: bool) -> Iterator[Issue]:
    """Yield why a policy cannot have a critic of that kind.

    Args:
        kind: asked for, or chosen.
        trained: what the policy trains, where that is no adapter that allows a second beside it.
        has_config: has the critic an adapter of its own?
        is_quantized: are the base weights?
    """
    if kind == "adapter" and trained is not None:
        found = f"critic 'adapter' is a second adapter beside the policy's, but the policy trains {trained}"
        yield Issue(found, "give the policy a LoRA adapter, or set critic to separate or shared", "args.critic")
    if kind == "shared" and has_config:
        yield Issue("critic 'shared' is a head on the policy, it has no adapter", "remove the critic's", "critic")
    if kind == "separate" and is_quantized:
        found = "critic 'separate' trains a copy of the model, but it is quantized"
        yield Issue(found, "set critic to adapter", "args.critic")


def choose_kind(kind: CriticKind | None, policy_config: Any, critic_config: Any, is_quantized: bool) -> CriticKind:
    """Choose the critic's kind: `adapter` where the policy is one that allows a second, `separate` else.

    Args:
        kind: what the user asks for, or None.
        policy_config: the `peft.PeftConfig` of the policy, or None.
        critic_config: the critic's own, or None.
        is_quantized: are the base weights?

    Raises:
        InputError: the kind cannot be had with this policy.
    """
    trained = "all parameters" if policy_config is None else policy_config.peft_type.value
    if policy_config is not None and shares_base(policy_config):
        trained = None
    chosen: CriticKind = kind or ("separate" if trained else "adapter")
    refuse(kind_concerns(chosen, trained, critic_config is not None, is_quantized))
    if chosen == "separate" and policy_config is not None and critic_config is not None:
        found = "critic 'separate' copies the model, which an adapter on it does not need"
        raise InputError(found, hint="use critic='adapter'")
    if chosen == "adapter" and critic_config and critic_config.peft_type != policy_config.peft_type:
        found, expected = critic_config.peft_type.value, policy_config.peft_type.value
        raise InputError(f"the critic's adapter is {found}, expected the policy's type {expected}: they share a base")
    return chosen


def critic_concerns(facts: StageFacts, has_config: bool) -> Iterator[Issue]:
    """Yield why the policy cannot have its critic, and warn of one for which there is no memory.

    Args:
        facts: of a stage `ppo` or `oreo`.
        has_config: has the critic an adapter of its own?
    """
    args, loading = facts.args, facts.loading
    if getattr(args, "advantage_estimator", "gae") != "gae":
        if has_config:
            yield Issue(f"critic is given, but {args.advantage_estimator} has no critic", "remove critic", "critic")
        return
    kind: CriticKind = args.critic or ("separate" if facts.trains_all else "adapter")
    is_quantized = bool(loading.get("load_in_4bit") or loading.get("load_in_8bit"))
    yield from kind_concerns(kind, "all parameters" if facts.trains_all else None, has_config, is_quantized)
    if not (facts.trains_all and facts.parameters):
        return
    # policy and critic that train whole, and the reference; activations and caches come on top
    size = facts.parameters * BYTES.get(str(loading.get("dtype")), 4)
    critic = 0 if kind == "shared" else size if has_config else size * COPIES_IN_TRAINING
    has_reference = getattr(args, "kl_coef", True)  # OREO always has one
    needed = size * COPIES_IN_TRAINING + critic + (size if has_reference else 0)
    there = facts.memory_bytes()
    if needed > there:
        what = f"policy, critic '{kind}'" + (" and reference" if has_reference else "")
        message = (
            f"full fine-tuning of {facts.parameters / 1e9:.2f}e9 parameters holds {what} with gradients and Adam: "
            f"{needed / 2**30:.1f} GiB before activations, but a device here has {there / 2**30:.1f} GiB"
        )
        hint = "adapter: {use: lora} keeps one base for all roles, args: {critic: shared} needs no second model"
        yield Issue(message, hint, "adapter", is_warning=True)


def check_critic(stage: str, critic: ResolvedAdapter | None) -> None:
    """Refuse a critic's adapter whose `prepare` would never be called.

    Raises:
        InputError: it has one.
    """
    if critic is not None and critic.prepare is not None:
        raise InputError(
            f"stage '{stage}': {adapter_compatibility.no_set_up(critic.name)}", hint=adapter_compatibility.PLAIN_CRITIC
        )


# --- the trainer -----------------------------------------------------------------------------------------------------


def check_start(
    args: Any, model: Any, policy_config: Any, critic_config: Any, options: Mapping[str, Any]
) -> CriticKind | None:
    """Refuse what `PPOTrainer` cannot do, best before anything is loaded.

    Args:
        args: a `PPOConfig`.
        model: a path or a model.
        policy_config: the policy's `peft.PeftConfig`, or None.
        critic_config: the critic's, or None.
        options: the other arguments of `GRPOTrainer`.

    Returns:
        The kind of critic, None for an estimator without one.

    Raises:
        InputError: critic, reference or greedy baseline cannot be had.
    """
    # GRPO loads the reference from the model's path; with an adapter it is the model with the adapter off
    is_in_memory = policy_config is None and not isinstance(model, str) and not compat.model_path(model)
    if args.kl_coef and is_in_memory:
        raise InputError(
            f"kl_coef is {args.kl_coef}, but a model built in memory has no reference to load",
            hint="save the model and give its path, train an adapter, or set kl_coef=0",
        )
    if args.advantage_estimator == "remax" and options.get("environment_factory"):
        raise InputError("remax answers each prompt a second time, which an environment has no place for")
    if args.has_critic:
        is_quantized = compat.is_quantized(model) or options.get("quantization_config") is not None
        return choose_kind(args.critic, policy_config, critic_config, is_quantized)
    if critic_config is not None:
        name = args.advantage_estimator
        raise InputError(f"critic_config is given, but {name} has no critic", hint="remove it, or use gae")
    return None


def check_reference_weights(trainer: Any) -> None:
    """Refuse a model that is not what its path holds: GRPO would load the reference from there.

    Raises:
        InputError: names the first parameter that differs.
    """
    import torch

    if trainer.ref_model is None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return  # sharded weights cannot be compared here
    reference = trainer.accelerator.unwrap_model(trainer.ref_model).state_dict()
    changed = [k for k, v in trainer.model.state_dict().items() if not torch.equal(v, reference[k].to(v.device))]
    if changed:
        path = compat.model_path(trainer.model)
        raise InputError(
            f"the reference would be {path}, but the model given has other weights ({changed[0]})",
            hint="save the model and give its path, or set kl_coef=0",
        )


def check_warm_up(trainer: Any) -> None:
    """Refuse weight decay beside a critic that warms up under DeepSpeed.

    It steps inside its own backward, where the policy's zero gradients cannot be taken out any more.

    Raises:
        InputError: weight decay would move the policy while only the critic should learn.
    """
    if trainer.is_deepspeed_enabled and trainer.args.critic_warmup_steps and trainer.args.weight_decay:
        raise InputError(
            f"critic_warmup_steps under DeepSpeed: weight_decay is {trainer.args.weight_decay} and moves the policy",
            hint="set weight_decay=0, or critic_warmup_steps=0",
        )


def warn_within_generation(trainer: Any, checkpoint: Path) -> None:
    """Warn where a checkpoint stands between two steps of one rollout, which TRL does not save."""
    step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    period = generation_period(trainer.args)
    if step % period:
        found = f"{checkpoint.name} stands within a rollout, which is made again: the run will not be the one it was"
        warnings.warn(f"{found}\n\nhint: set save_steps to a multiple of {period}", stacklevel=2)
