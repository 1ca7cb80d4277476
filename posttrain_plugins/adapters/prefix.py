"""Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li and Liang, 2021), by PEFT.

Paper: https://huggingface.co/papers/2101.00190.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PrefixTuningConfig

__all__ = ["prefix"]


def prefix(num_virtual_tokens: int = 20, task_type: str = "CAUSAL_LM", **params: Any) -> PrefixTuningConfig:
    """Return a `peft.PrefixTuningConfig`: learned keys and values before every text, in every layer.

    Args:
        num_virtual_tokens: length of the prefix; 20, as in PEFT's guide.
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of `peft.PrefixTuningConfig` (`prefix_projection`, `encoder_hidden_size`, `init_weights` ...).

    Example:
        >>> prefix(num_virtual_tokens=8).num_virtual_tokens
        8
    """
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(num_virtual_tokens=num_virtual_tokens, task_type=task_type, **params)


prefix.params_of = "peft:PrefixTuningConfig"  # type: ignore[attr-defined]
# keys and values of virtual tokens are handed to the model as a cache: there is no weight to add them to
prefix.can_merge = False  # type: ignore[attr-defined]
