"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al., 2023), by PEFT.

Paper: https://huggingface.co/papers/2303.10512.

Deviations from PEFT: `target_modules` is `all-linear` where nothing is given (see `lora`), and `total_step` need not be
given: it is the stage's own number of optimizer steps. The rank allocator is called after every step, in all stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain_plugins.models.tuners.adalora import AdaLoraConfig

__all__ = ["adalora"]


def adalora(
    target_modules: str | list[str] = "all-linear",
    total_step: int | None = None,
    task_type: str = "CAUSAL_LM",
    **params: Any,
) -> AdaLoraConfig:
    """Return a `peft.AdaLoraConfig` whose ranks shrink from `init_r` to `target_r` on average as training goes on.

    Args:
        target_modules: which modules get an adapter; PEFT's forms.
        total_step: optimizer steps of the schedule; by default those of the stage.
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of `peft.AdaLoraConfig` (`init_r`, `target_r`, `tinit`, `tfinal`, `deltaT` ...).

    Returns:
        The PEFT config; where TRL is used without recipes, call its `prepare(trainer)` before `trainer.train()`.

    Raises:
        InputError: `init_r` is not above `target_r`, so that there is nothing to allocate.

    Example:
        >>> adalora(init_r=6, target_r=2).init_r
        6
    """
    # Ours and not PEFT's: TRL's trainers never call PEFT's rank allocator, so that no rank would shrink. The module
    # imports torch, which `plugins list` must not.
    from posttrain_plugins.models.tuners.adalora import AdaLoraConfig

    return AdaLoraConfig(target_modules=target_modules, total_step=total_step, task_type=task_type, **params)


# the check reads the parameters from PEFT's source, whose fields ours has to the letter
adalora.params_of = "peft:AdaLoraConfig"  # type: ignore[attr-defined]
