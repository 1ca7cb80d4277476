"""OFT: Controlling Text-to-Image Diffusion by Orthogonal Finetuning (Qiu et al., 2023), by PEFT.

Paper: https://huggingface.co/papers/2306.07280.

One deviation from PEFT's defaults: `target_modules` is `all-linear` where nothing is given (see `lora`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import OFTConfig

__all__ = ["oft"]


def oft(target_modules: str | list[str] = "all-linear", task_type: str = "CAUSAL_LM", **params: Any) -> OFTConfig:
    """Return a `peft.OFTConfig`: each weight is turned by a learned block-diagonal rotation.

    Args:
        target_modules: which modules get an adapter; PEFT's forms.
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of `peft.OFTConfig` (`oft_block_size`, `r`, `coft` ...).

    Example:
        >>> oft(oft_block_size=8).oft_block_size
        8
    """
    from peft import OFTConfig

    # the block size is left to PEFT, which changes it for a module whose width it does not divide
    return OFTConfig(target_modules=target_modules, task_type=task_type, **params)


oft.params_of = "peft:OFTConfig"  # type: ignore[attr-defined]
