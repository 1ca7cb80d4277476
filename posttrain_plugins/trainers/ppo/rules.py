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
from posttrain_plugins.types import CriticKind, Issue, ResolvedAdapter, ResolvedCritic, StageFacts, ValueSource

__all__ = [
    "Baseline",
    "CriticKind",
    "Estimator",
    "KLEstimator",
    "aggregation_concerns",
    "check_critic",
    "check_reference_weights",
    "check_start",
    "choice_concerns",
    "choose_kind",
    "config_concerns",
    "critic_concerns",
    "engine_concerns",
    "pass_concerns",
    "refuse",
    "start_concerns",
    "step_concerns",
    "warn_within_generation",
]

Estimator: TypeAlias = Literal["gae", "reinforce", "reinforce_pp", "reinforce_pp_baseline", "remax"]
"""How advantages are estimated: the table in `advantages.py`. `gae` alone has a critic."""
KLEstimator: TypeAlias = Literal["k1", "k3"]
Baseline: TypeAlias = Literal["batch", "running"]

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
    ("1 or more", ("critic_iterations",)),
    ("more than 0", ("kl_target", "cliprange_value", "score_clip", "kl_horizon", "critic_max_grad_norm")),
)
"""What a number has to be; None, where a field may be it, is fine."""
LEAST: Mapping[str, float] = {"0 to 1": 0.0, "0 or more": 0.0, "1 or more": 1.0}
OF_THE_CRITIC = (
    *("critic", "critic_learning_rate", "critic_warmup_steps"),
    *("critic_iterations", "critic_max_grad_norm", "normalize_returns"),
)
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
            is_above = value is None or (value > 0 if expected == "more than 0" else value >= LEAST[expected])
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
    yield from pass_concerns(args)
    unused = [name for name in OF_THE_CRITIC if getattr(args, name)]
    if unused and args.advantage_estimator != "gae":
        found = f"{unused[0]} is set, but {args.advantage_estimator} has no critic"
        yield Issue(found, f"remove {unused[0]}", f"args.{unused[0]}")


def pass_concerns(args: Any) -> Iterator[Issue]:
    """Yield why the critic cannot have passes or a clipping of its own."""
    steps, accumulation = args.steps_per_generation, args.gradient_accumulation_steps
    has_own = args.critic_iterations not in (None, args.num_iterations)
    # an optimizer step would hold batches of two passes, in one of which the policy learns and in the other not
    if has_own and steps and accumulation and steps % accumulation:
        found = f"critic_iterations is {args.critic_iterations}, but an optimizer step ends within a pass: "
        found += f"steps_per_generation is {steps}, gradient_accumulation_steps {accumulation}"
        hint = "set steps_per_generation to a multiple of gradient_accumulation_steps"
        yield Issue(found, hint, "args.critic_iterations")
    if args.critic_max_grad_norm and args.max_grad_norm == 0:
        found = "critic_max_grad_norm is set, but max_grad_norm is 0, with which no gradient is clipped"
        yield Issue(found, "max_grad_norm: 1.0e+9 clips the critic's alone", "args.critic_max_grad_norm")


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


def start_concerns(kind: CriticKind, start: ValueSource, is_quantized: bool) -> Iterator[Issue]:
    """Yield why a critic of that kind cannot start from what `critic.from` names."""
    if kind == "shared" and not (start.body == "shared" and start.is_policy):
        found = f"critic 'shared' reads the policy's own body, but critic.from '{start.name}' has another"
        yield Issue(
            found, "critic: {kind: separate, from: ...}, or start policy and critic from one stage", "critic.from"
        )
    if kind == "adapter" and start.body != "adapter":
        found = f"critic 'adapter' stands on the policy's base, but critic.from '{start.name}' is a whole model"
        yield Issue(found, "critic: {kind: separate, from: ...}, or train it with an adapter", "critic.from")
    if kind == "adapter" and start.body == "adapter" and start.misfit:
        found = f"critic.from '{start.name}' does not fit on the policy's base: {start.misfit}"
        hint = "train both from the same model (adapter_mode: stack), or critic: {kind: separate, from: ...}"
        yield Issue(found, hint, "critic.from")
    if kind == "separate" and is_quantized:
        found = f"critic.from '{start.name}' would be a whole model beside a quantized one"
        yield Issue(
            found, "train it with an adapter of the policy's type, from what the policy starts from", "critic.from"
        )


def choose_kind(
    kind: CriticKind | None,
    policy_config: Any,
    critic_config: Any,
    is_quantized: bool,
    start: ValueSource | None = None,
) -> CriticKind:
    """Choose the critic's kind: `adapter` where the policy is one that allows a second, `separate` else.

    Args:
        kind: what the user asks for, or None.
        policy_config: the `peft.PeftConfig` of the policy, or None.
        critic_config: the critic's own, or None.
        is_quantized: are the base weights?
        start: what the critic starts from, or None.

    Raises:
        InputError: the kind cannot be had with this policy, or cannot start from that.
    """
    trained = "all parameters" if policy_config is None else policy_config.peft_type.value
    if policy_config is not None and shares_base(policy_config):
        trained = None
    chosen: CriticKind = kind or ("separate" if trained else "adapter")
    if start is not None:
        chosen = kind or start.kind_beside(trained is None)
        refuse(start_concerns(chosen, start, is_quantized))
    refuse(kind_concerns(chosen, trained, critic_config is not None, is_quantized))
    if chosen == "separate" and policy_config is not None and critic_config is not None:
        found = "critic 'separate' copies the model, which an adapter on it does not need"
        raise InputError(found, hint="use critic='adapter'")
    if chosen == "adapter" and critic_config and critic_config.peft_type != policy_config.peft_type:
        found, expected = critic_config.peft_type.value, policy_config.peft_type.value
        raise InputError(f"the critic's adapter is {found}, expected the policy's type {expected}: they share a base")
    return chosen


def critic_concerns(facts: StageFacts, has_config: bool, given: Mapping[str, Any] | None = None) -> Iterator[Issue]:
    """Yield why the policy cannot have its critic, and warn of one for which there is no memory.

    Args:
        facts: of a stage `ppo` or `oreo`.
        has_config: has the critic an adapter of its own?
        given: the `kind` and `from` that the recipe says of it in place of one.
    """
    args, loading, start = facts.args, facts.loading, facts.critic_start
    if getattr(args, "advantage_estimator", "gae") != "gae":
        if has_config or given:
            yield Issue(f"critic is given, but {args.advantage_estimator} has no critic", "remove critic", "critic")
        return
    if hasattr(args, "critic_iterations"):  # PPO's, and not OREO's
        is_deepspeed, is_fsdp = facts.engine.startswith("zero"), facts.engine.startswith("fsdp")
        yield from engine_concerns(args, is_deepspeed=is_deepspeed, is_fsdp=is_fsdp)
    asked: CriticKind | None = args.critic or (given or {}).get("kind")
    if given and args.critic and given.get("kind") not in (None, args.critic):
        found = f"critic.kind is {given['kind']!r}, but args.critic is {args.critic!r}"
        yield Issue(found, "remove args.critic", "critic.kind")
    kind: CriticKind = asked or ("separate" if facts.trains_all else "adapter")
    is_quantized = bool(loading.get("load_in_4bit") or loading.get("load_in_8bit"))
    if start is not None:
        kind = asked or start.kind_beside(not facts.trains_all)
        yield from start_concerns(kind, start, is_quantized)
        if kind == "separate" and is_quantized:
            return  # told
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


def check_critic(stage: str, critic: ResolvedAdapter | ResolvedCritic | None) -> None:
    """Refuse a critic's adapter whose `prepare` would never be called.

    Raises:
        InputError: it has one.
    """
    if isinstance(critic, ResolvedAdapter) and critic.prepare is not None:
        raise InputError(
            f"stage '{stage}': {adapter_compatibility.no_set_up(critic.name)}", hint=adapter_compatibility.PLAIN_CRITIC
        )


# --- the trainer -----------------------------------------------------------------------------------------------------


def check_start(
    args: Any,
    model: Any,
    policy_config: Any,
    critic_config: Any,
    options: Mapping[str, Any],
    start: ValueSource | None = None,
) -> CriticKind | None:
    """Refuse what `PPOTrainer` cannot do, best before anything is loaded.

    Args:
        args: a `PPOConfig`.
        model: a path or a model.
        policy_config: the policy's `peft.PeftConfig`, or None.
        critic_config: the critic's, or None.
        options: the other arguments of `GRPOTrainer`.
        start: what the critic starts from, or None.

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
        if start is not None and critic_config is not None:
            raise InputError("critic_config is given, but the critic starts from what has its own", hint="remove it")
        return choose_kind(args.critic, policy_config, critic_config, is_quantized, start)
    if critic_config is not None or start is not None:
        name, given = args.advantage_estimator, "critic_config" if start is None else "critic_from"
        raise InputError(f"{given} is given, but {name} has no critic", hint="remove it, or use gae")
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


def engine_concerns(args: Any, *, is_deepspeed: bool, is_fsdp: bool) -> Iterator[Issue]:
    """Yield what DeepSpeed and FSDP cannot do with the critic.

    DeepSpeed clips and steps inside its own backward: the policy's zero gradients cannot be taken out there any more,
    so that weight decay, and after the first step Adam's moments, would move what should stand still. Weights in
    pieces are no head that can be rescaled.
    """
    asked = {
        "critic_iterations": is_deepspeed and args.critic_iterations not in (None, args.num_iterations),
        "critic_max_grad_norm": is_deepspeed and args.critic_max_grad_norm is not None,
        "normalize_returns": (is_deepspeed or is_fsdp) and args.normalize_returns,
    }
    for name in (name for name, is_set in asked.items() if is_set):
        found = f"{name} cannot be had under {'DeepSpeed' if is_deepspeed else 'FSDP'}"
        yield Issue(found, f"remove {name}, or launch: ddp", f"args.{name}")
    if is_deepspeed and args.critic_warmup_steps and args.weight_decay:
        found = f"critic_warmup_steps under DeepSpeed: weight_decay is {args.weight_decay} and moves the policy"
        yield Issue(found, "set weight_decay=0, or critic_warmup_steps=0", "args.critic_warmup_steps")


def warn_within_generation(trainer: Any, checkpoint: Path) -> None:
    """Warn where a checkpoint stands between two steps of one rollout, which TRL does not save."""
    step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    period = generation_period(trainer.args)
    if step % period:
        found = f"{checkpoint.name} stands within a rollout, which is made again: the run will not be the one it was"
        warnings.warn(f"{found}\n\nhint: set save_steps to a multiple of {period}", stacklevel=2)
