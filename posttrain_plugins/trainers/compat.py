"""Every private name of TRL, PEFT and transformers that we touch, each with the contract test that guards it.

Nothing else in the project reaches below their public interfaces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["generation_period", "observe_losses", "set_reward_names"]


def observe_losses(trainer: Any, sink: Callable[[Any], None]) -> None:
    """Calls `sink(loss)` with every micro-step's detached loss, before transformers filters NaN out of its logs."""
    training_step = trainer.training_step

    def observed(*args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        sink(loss.detach())
        return loss

    trainer.training_step = observed


def generation_period(args: Any) -> int:
    """After how many optimizer steps the rollout buffer of GRPO or RLOO is used up; 1 for trainers that have none.

    TRL does not save the buffer, so only a checkpoint at a multiple of this continues as if nothing had happened.
    """
    micro_steps = (getattr(args, "steps_per_generation", None) or 1) * (getattr(args, "num_iterations", None) or 1)
    accumulation = args.gradient_accumulation_steps
    return next(n for n in range(1, micro_steps + 1) if n * accumulation % micro_steps == 0)


def set_reward_names(trainer: Any, names: list[str]) -> None:
    """What is logged is the recipe's key; TRL has no argument for it."""
    assert len(trainer.reward_func_names) == len(names)
    trainer.reward_func_names = names
