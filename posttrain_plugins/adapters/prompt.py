"""Prompt tuning (Lester et al., 2021), by PEFT.

Paper: https://huggingface.co/papers/2104.08691.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PromptTuningConfig

__all__ = ["prompt"]


def prompt(num_virtual_tokens: int = 20, task_type: str = "CAUSAL_LM", **params: Any) -> PromptTuningConfig:
    """Return a `peft.PromptTuningConfig`: learned embeddings before every text.

    Args:
        num_virtual_tokens: learned tokens before every text; 20 is where more gain little (Lester et al., figure 3a).
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of `peft.PromptTuningConfig` (`prompt_tuning_init`, `prompt_tuning_init_text` ...).

    Example:
        >>> prompt(num_virtual_tokens=8).num_virtual_tokens
        8
    """
    from peft import PromptTuningConfig

    # `prompt_tuning_init_text` needs a tokenizer by name, which PEFT loads: give `tokenizer_name_or_path` with it
    return PromptTuningConfig(num_virtual_tokens=num_virtual_tokens, task_type=task_type, **params)


prompt.params_of = "peft:PromptTuningConfig"  # type: ignore[attr-defined]
# virtual tokens stand before the text: there is no weight to add them to
prompt.can_merge = False  # type: ignore[attr-defined]
