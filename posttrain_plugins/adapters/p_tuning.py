"""P-tuning: GPT Understands, Too (Liu et al., 2021), by PEFT.

Paper: https://huggingface.co/papers/2103.10385.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PromptEncoderConfig

__all__ = ["p_tuning"]


def p_tuning(num_virtual_tokens: int = 20, task_type: str = "CAUSAL_LM", **params: Any) -> PromptEncoderConfig:
    """Return a `peft.PromptEncoderConfig`: embeddings before every text, made by a small learned network.

    Args:
        num_virtual_tokens: learned tokens before every text; 20, as in PEFT's guide.
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of `peft.PromptEncoderConfig` (`encoder_hidden_size`, `encoder_reparameterization_type` ...).

    Example:
        >>> p_tuning(num_virtual_tokens=8).num_virtual_tokens
        8
    """
    from peft import PromptEncoderConfig

    return PromptEncoderConfig(num_virtual_tokens=num_virtual_tokens, task_type=task_type, **params)


p_tuning.params_of = "peft:PromptEncoderConfig"  # type: ignore[attr-defined]
# virtual tokens stand before the text: there is no weight to add them to
p_tuning.can_merge = False  # type: ignore[attr-defined]
