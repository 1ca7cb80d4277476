"""How weights are packed: TRL's reading of `ModelConfig`, and 4-bit weights that stay what they are on every CPU."""

from __future__ import annotations

from typing import Any

__all__ = ["keep_packed_weights_exact", "quantization_config"]


def quantization_config(config: Any) -> Any:
    """Return the quantization that a TRL `ModelConfig` asks for.

    Args:
        config: a `trl.ModelConfig`.

    Returns:
        A `transformers.BitsAndBytesConfig`, or None where nothing is packed.
    """
    from trl import get_quantization_config

    found = get_quantization_config(config)
    if found is not None:
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
