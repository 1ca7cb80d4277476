"""What `PPOTrainer` refuses or warns of: a critic or a reference that cannot be had, best before anything is loaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from posttrain_plugins.errors import InputError
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.ppo.config import PPOConfig
from posttrain_plugins.trainers.ppo.critic import Kind, choose_kind

__all__ = ["check", "check_reference_weights", "check_warm_up", "warn_within_generation"]


def check(
    args: PPOConfig, model: Any, policy_config: Any, critic_config: Any, options: Mapping[str, Any]
) -> Kind | None:
    """The kind of critic, None for an estimator without one.

    Args:
        args: of the trainer.
        model: a path or a model.
        policy_config: the policy's `peft.PeftConfig`, or None.
        critic_config: the critic's, or None.
        options: the other arguments of `GRPOTrainer`.

    Raises:
        InputError: critic, reference or greedy baseline cannot be had.
    """
    is_in_memory = policy_config is None and not isinstance(model, str) and not compat.model_path(model)
    if args.kl_coef and is_in_memory:
        raise InputError(
            f"kl_coef is {args.kl_coef}, but a model built in memory has no reference to load",
            hint="save the model and give its path, train an adapter, or set kl_coef=0",
        )
    if args.advantage_estimator == "remax" and options.get("environment_factory"):
        raise InputError("remax answers each prompt a second time, which an environment has no place for")
    if args.has_critic:
        bits = [getattr(model, f"is_loaded_in_{n}bit", False) for n in (4, 8)]
        is_quantized = any(bits) or options.get("quantization_config") is not None
        return choose_kind(args.critic, policy_config, critic_config, is_quantized)
    if critic_config is not None:
        name = args.advantage_estimator
        raise InputError(f"critic_config is given, but {name} has no critic", hint="remove it, or use gae")
    return None


def check_reference_weights(trainer: Any) -> None:
    """Refuses a model that is not what its path holds: GRPO would load the reference from there.

    Raises:
        InputError: names the first parameter that differs.
    """
    if trainer.ref_model is None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    reference = trainer.accelerator.unwrap_model(trainer.ref_model).state_dict()
    changed = [k for k, v in trainer.model.state_dict().items() if not torch.equal(v, reference[k].to(v.device))]
    if changed:
        path = compat.model_path(trainer.model)
        raise InputError(
            f"the reference would be {path}, but the model given has other weights ({changed[0]})",
            hint="save the model and give its path, or set kl_coef=0",
        )


def check_warm_up(trainer: Any) -> None:
    """DeepSpeed steps inside its own backward, where the policy's zero gradients cannot be taken out any more.

    Raises:
        InputError: weight decay would move the policy while only the critic should learn.
    """
    if trainer.is_deepspeed_enabled and trainer.args.critic_warmup_steps and trainer.args.weight_decay:
        raise InputError(
            f"critic_warmup_steps under DeepSpeed: weight_decay is {trainer.args.weight_decay} and moves the policy",
            hint="set weight_decay=0, or critic_warmup_steps=0",
        )


def warn_within_generation(trainer: Any, checkpoint: Path) -> None:
    """Warns where a checkpoint stands between two steps of one rollout, which TRL does not save."""
    step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    period = compat.generation_period(trainer.args)
    if step % period:
        found = f"{checkpoint.name} stands within a rollout, which is made again: the run will not be the one it was"
        warnings.warn(f"{found}\n\nhint: set save_steps to a multiple of {period}", stacklevel=2)
