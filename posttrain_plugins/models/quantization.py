"""How weights are packed: TRL's reading of `ModelConfig`, and 4-bit weights that stay what they are on every CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.folder import Task

__all__ = ["is_quantized", "keep_packed_weights_exact", "quantization_config"]


def is_quantized(loading: Mapping[str, Any]) -> bool:
    """Tell whether TRL `ModelConfig`'s fields ask for packed weights."""
    return bool(loading.get("load_in_4bit") or loading.get("load_in_8bit"))


def quantization_config(loading: Mapping[str, Any], task: Task | None = "CausalLM") -> Any:
    """Return the quantization that TRL `ModelConfig`'s fields ask for.

    Args:
        loading: the fields; others are passed over.
        task: what the model is loaded as.

    Returns:
        A `transformers.BitsAndBytesConfig`, or None where nothing is packed.

    Raises:
        InputError: bitsandbytes is missing, or refuses a value.
    """
    if not is_quantized(loading):
        return None  # before TRL is imported, which takes seconds
    from trl import ModelConfig, get_quantization_config

    # `loading` also has fields that only we read, which `ModelConfig` would refuse
    known = {name: value for name, value in loading.items() if name in ModelConfig.__dataclass_fields__}
    if known.get("dtype") == "auto":
        known["dtype"] = "bfloat16"  # TRL computes in the dtype of the weights, and `auto` is none to compute in
    try:
        found: Any = get_quantization_config(ModelConfig(**known))
    except (ImportError, ValueError) as cause:
        raise InputError(
            f"the model cannot be quantized: {cause}", hint="pip install 'posttrain-plugins[quant]'"
        ) from cause
    if task != "CausalLM":
        # A classifier's head is new, or was trained whole: transformers would pack it with the layers, and what is
        # read into it from an adapter's file afterwards would not fit. The field's name is one for 4 bits too.
        found.llm_int8_skip_modules = [*(found.llm_int8_skip_modules or []), "score"]
    keep_packed_weights_exact()
    return found


def keep_packed_weights_exact() -> None:
    """Switch off bitsandbytes' repacking of 4-bit weights on CPUs with AVX512-BF16; a GPU does not know it.

    There, bitsandbytes 0.50 repacks a `Linear4bit` in place at its first call in evaluation mode. It rounds the
    scales to bfloat16 for good, so that a base is another one after its first rollout, a resumed run another than the
    uninterrupted one, and one processor's figures others than its neighbour's. It also fails for rows shorter than a
    block of 64 weights. Plain TRL in the same process takes the same way.
    """
    from bitsandbytes.nn import modules

    # Read in each Linear4bit's __init__; an instance's own attribute would miss the layers that PEFT makes later.
    modules.has_avx512bf16 = lambda: False
