"""`attention_lora`: LoRA on the projections of attention only.

Paper: Hu et al., 2021 (https://huggingface.co/papers/2106.09685), section 4.2.
"""

from typing import Any


def attention_lora(**params: Any) -> Any:
    """LoRA on the query and value projections; every parameter is PEFT's own."""
    from peft import LoraConfig

    return LoraConfig(**{"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **params})


attention_lora.params_of = "peft:LoraConfig"  # whose fields a recipe may give
