"""Prompt tuning (Lester et al., 2021, arXiv:2104.08691), by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PromptTuningConfig

__all__ = ["prompt"]


def prompt(num_virtual_tokens: int = 20, task_type: str = "CAUSAL_LM", **params: Any) -> PromptTuningConfig:
    """A `peft.PromptTuningConfig`: learned embeddings before every text.

    Args:
        num_virtual_tokens: learned tokens before every text; 20 is where more gain little (Lester et al., figure 3a).
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of `peft.PromptTuningConfig` (`prompt_tuning_init`, `prompt_tuning_init_text` ...).

    Returns:
        The PEFT config that TRL's trainers take.

    Example:
        >>> prompt(num_virtual_tokens=8).num_virtual_tokens
        8
    """
    from peft import PromptTuningConfig

    return PromptTuningConfig(num_virtual_tokens=num_virtual_tokens, task_type=task_type, **params)


prompt.params_of = "peft:PromptTuningConfig"  # type: ignore[attr-defined]
prompt.can_merge = False  # type: ignore[attr-defined]
