"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., 2023), by PEFT.

Paper: https://huggingface.co/papers/2310.11454.

One deviation from PEFT's defaults: `target_modules` is `all-linear` where nothing is given (see `lora`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import VeraConfig

__all__ = ["vera"]


def vera(target_modules: str | list[str] = "all-linear", task_type: str = "CAUSAL_LM", **params: Any) -> VeraConfig:
    """Return a `peft.VeraConfig`: one pair of random matrices for all layers, and two learned vectors for each.

    Args:
        target_modules: which modules get an adapter; PEFT's forms.
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of `peft.VeraConfig` (`r`, `d_initial`, `projection_prng_key` ...).

    Example:
        >>> vera(r=32).r
        32
    """
    from peft import VeraConfig

    # `r` stays PEFT's 256: the matrices are shared and never trained, so a rank costs one number a layer
    return VeraConfig(target_modules=target_modules, task_type=task_type, **params)


vera.params_of = "peft:VeraConfig"  # type: ignore[attr-defined]
