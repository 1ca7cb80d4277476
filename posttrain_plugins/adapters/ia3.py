"""(IA)^3, for few-shot fine-tuning (Liu et al., 2022), by PEFT.

Paper: https://huggingface.co/papers/2205.05638.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import IA3Config

__all__ = ["ia3"]


def ia3(target_modules: str | list[str] | None = None, task_type: str = "CAUSAL_LM", **params: Any) -> IA3Config:
    """Return a `peft.IA3Config`: a learned factor for each channel of keys, values and feed-forward inputs.

    Args:
        target_modules: which modules are scaled; by default PEFT's own table for the model's type.
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of `peft.IA3Config` (`feedforward_modules`, `init_ia3_weights` ...).

    Example:
        >>> ia3(target_modules=["v_proj"], feedforward_modules=[]).peft_type.value
        'IA3'
    """
    from peft import IA3Config

    # no `all-linear` here: which modules are scaled before their weights, and not behind, PEFT's table says by type
    return IA3Config(target_modules=target_modules, task_type=task_type, **params)


ia3.params_of = "peft:IA3Config"  # type: ignore[attr-defined]
