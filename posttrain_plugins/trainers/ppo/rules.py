"""What PPO cannot do with its settings: asked by `PPOConfig`, and by the stage's check before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models import adapter_compatibility
from posttrain_plugins.types import Concern, Outlook, ResolvedAdapter

__all__ = [
    "ESTIMATORS",
    "LOSS_TYPES",
    "aggregation_concerns",
    "check_critic",
    "complaints",
    "critic_concerns",
    "step_concerns",
]

ESTIMATORS = ("gae", "reinforce", "reinforce_pp", "reinforce_pp_baseline", "remax")
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "advantage_estimator": ESTIMATORS,
    "kl_estimator": ("k1", "k3"),
    "baseline": ("batch", "running"),
    "critic": ("adapter", "shared", "separate", None),
    "loss_type": LOSS_TYPES,
}
OF_GRPO: Mapping[str, tuple[tuple[Any, ...], str, str]] = {
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
OF_THE_CRITIC = ("critic", "critic_learning_rate", "critic_warmup_steps")
BYTES = {"bfloat16": 2, "float16": 2, "half": 2}
COPIES_IN_TRAINING = 4  # weights, gradients, and the two moments of Adam


def complaints(args: Any) -> Iterator[Concern]:
    """What cannot work, whatever the model; `args` is a `PPOConfig`, or has its fields."""
    for name, allowed in CHOICES.items():
        if getattr(args, name) not in allowed:
            yield Concern(f"{name} is {getattr(args, name)!r}, expected {_or(allowed)}", field=f"args.{name}")
    if args.beta not in (0.0, args.kl_coef):
        yield Concern(f"beta is {args.beta}, but PPO's KL stands in the reward", "set kl_coef instead", "args.beta")
    for name, (allowed, reason, hint) in OF_GRPO.items():
        if getattr(args, name) not in allowed:
            yield Concern(f"{name} is {getattr(args, name)!r}, but {reason}", hint, f"args.{name}")
    for name, expected in _out_of_range(args):
        yield Concern(f"{name} is {getattr(args, name)}, expected {expected}", field=f"args.{name}")
    if args.kl_target is not None and args.kl_coef == 0:
        hint = "set kl_coef to where it should start"
        yield Concern("kl_target adapts kl_coef, which is 0", hint, "args.kl_target")
    if args.advantage_estimator == "reinforce_pp_baseline" and (args.num_generations or 0) < 2:
        found = "reinforce_pp_baseline compares the completions of a prompt, but num_generations is 1"
        yield Concern(found, "set num_generations to 2 or more", "args.advantage_estimator")
    unused = [name for name in OF_THE_CRITIC if getattr(args, name)]
    if unused and args.advantage_estimator != "gae":
        found = f"{unused[0]} is set, but {args.advantage_estimator} has no critic"
        yield Concern(found, f"remove {unused[0]}", f"args.{unused[0]}")


def check_critic(stage: str, critic: ResolvedAdapter | None) -> None:
    """Refuses a critic's adapter whose `prepare` would never be called.

    Raises:
        InputError: it has one.
    """
    if critic is not None and critic.prepare is not None:
        raise InputError(
            f"stage '{stage}': {adapter_compatibility.no_set_up(critic.name)}", hint=adapter_compatibility.PLAIN_CRITIC
        )


def critic_concerns(outlook: Outlook, has_config: bool) -> Iterator[Concern]:
    """A critic that this policy cannot have, and one for which there is no memory.

    Args:
        outlook: of a stage `ppo` or `oreo`.
        has_config: has the critic an adapter of its own?
    """
    args = outlook.args
    if getattr(args, "advantage_estimator", "gae") != "gae":
        if has_config:
            yield Concern(f"critic is given, but {args.advantage_estimator} has no critic", "remove critic", "critic")
        return
    kind = args.critic or ("separate" if outlook.trains_all else "adapter")
    if kind == "adapter" and outlook.trains_all:
        found = "critic 'adapter' is a second adapter beside the policy's, but the policy trains all parameters"
        yield Concern(found, "adapter: {use: lora}, or critic: separate or shared", "args.critic")
    if kind == "shared" and has_config:
        yield Concern("critic 'shared' is a head on the policy, it has no adapter", "remove critic", "critic")
    if kind == "separate" and (outlook.loading.get("load_in_4bit") or outlook.loading.get("load_in_8bit")):
        found = "critic 'separate' trains a copy of the model, but it is quantized"
        yield Concern(found, "args: {critic: adapter}", "args.critic")
    if outlook.trains_all and outlook.parameters:
        yield from _memory(outlook, kind, has_config)


def aggregation_concerns(args: Any) -> Iterator[Concern]:
    """Process supervision normalises each reward by itself and adds them by their weights, whatever is asked for."""
    if args.multi_objective_aggregation != "sum_then_normalize":
        found = (
            f"multi_objective_aggregation is '{args.multi_objective_aggregation}', but process_rewards leave no choice"
        )
        hint = "remove it: each process reward is normalised by itself, the others are added first"
        yield Concern(found, hint, "args.multi_objective_aggregation")


def step_concerns(names: Iterable[str] | None, outlook: Outlook, field: str) -> Iterator[Concern]:
    """Process rewards that are no reward of the stage, or cannot judge steps."""
    for name in names or ():
        if name not in outlook.judges_steps:
            known = ", ".join(outlook.judges_steps)
            yield Concern(f"process_rewards names no reward: '{name}', expected one of {known}", field=field)
        elif not outlook.judges_steps[name]:
            found = f"reward '{name}' is in process_rewards, but it has no step_scores"
            yield Concern(found, "use one that judges steps, such as process_reward_model", field)


def _memory(outlook: Outlook, kind: str, has_config: bool) -> Iterator[Concern]:
    """Policy and critic that train whole, and the reference; activations and caches come on top."""
    args, parameters = outlook.args, outlook.parameters or 0
    size = parameters * BYTES.get(str(outlook.loading.get("dtype")), 4)
    critic = 0 if kind == "shared" else size if has_config else size * COPIES_IN_TRAINING
    has_reference = getattr(args, "kl_coef", True)  # OREO always has one
    needed = size * COPIES_IN_TRAINING + critic + (size if has_reference else 0)
    there = outlook.memory_bytes()
    if needed > there:
        what = f"policy, critic '{kind}'" + (" and reference" if has_reference else "")
        found = f"full fine-tuning of {parameters / 1e9:.2f}e9 parameters holds {what} with gradients and Adam: "
        message = f"{found}{needed / 2**30:.1f} GiB before activations, but a device here has {there / 2**30:.1f} GiB"
        hint = "adapter: {use: lora} keeps one base for all roles, args: {critic: shared} needs no second model"
        yield Concern(message, hint, "adapter", is_warning=True)


def _out_of_range(args: Any) -> Iterator[tuple[str, str]]:
    if args.kl_target is not None and args.kl_target <= 0:
        yield "kl_target", "more than 0"
    for name in ("gamma", "lam", "baseline_decay"):
        if not 0 <= getattr(args, name) <= 1:
            yield name, "0 to 1"
    for name in ("kl_coef", "vf_coef", "missing_eos_penalty", "critic_learning_rate", "critic_warmup_steps"):
        if (getattr(args, name) or 0) < 0:
            yield name, "0 or more"
    for name in ("cliprange_value", "score_clip", "kl_horizon"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            yield name, "more than 0"
    if args.step_separator == "":
        yield "step_separator", "some characters"


def _or(allowed: tuple[Any, ...]) -> str:
    return ", ".join(map(str, allowed[:-1])) + f" or {allowed[-1]}"
