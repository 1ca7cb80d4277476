"""`my_plugin`: say here what is trainable, and by which paper."""

from typing import Any


def my_plugin(r: int = 8, lora_alpha: int = 16) -> Any:
    """Put LoRA on every linear layer, scaled by the square root of its rank.

    rsLoRA: https://huggingface.co/papers/2312.03732.

    Args:
        r: the rank.
        lora_alpha: the scale, over the square root of `r`.
    """
    from peft import LoraConfig  # inside the call: `posttrain validate` imports this module

    return LoraConfig(r=r, lora_alpha=lora_alpha, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
