"""Models and tokenizers from folders and Hub ids: full, 4-bit, and PEFT adapters over their base, with their stack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.models.quantization import quantization_config
from posttrain_plugins.models.stack import adapter_config, load_adapted

__all__ = ["load_model", "load_tokenizer"]


def load_model(
    path: str | Path,
    loading: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Any:
    """Load a causal language model, or a PEFT adapter with its base and the adapters between.

    Args:
        path: a folder or Hub id.
        loading: TRL `ModelConfig` fields.
        device: by default `cuda` where there is one, else `cpu`; `auto` spreads a model over several GPUs.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loading = dict(loading or {})
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = {
        "dtype": loading.get("dtype") or "auto",
        "attn_implementation": loading.get("attn_implementation"),
        "revision": loading.get("model_revision") or "main",
        "quantization_config": _quantization(loading),
        "device_map": "auto" if device == "auto" else {"": device},
    }
    options = {name: value for name, value in options.items() if value is not None}
    if adapter_config(path):
        return load_adapted(path, **options)
    return AutoModelForCausalLM.from_pretrained(str(path), **options)


def load_tokenizer(path: str | Path, loading: Mapping[str, Any] | None = None) -> Any:
    """The tokenizer beside a model; an adapter without one has its base's."""
    from transformers import AutoTokenizer

    config = adapter_config(path)
    if config and not (Path(path) / "tokenizer_config.json").is_file():
        path = config["base_model_name_or_path"]
    return AutoTokenizer.from_pretrained(str(path), revision=(loading or {}).get("model_revision") or "main")


def _quantization(loading: Mapping[str, Any]) -> Any:
    """TRL's own reading of its fields; None where nothing is quantized."""
    if not (loading.get("load_in_4bit") or loading.get("load_in_8bit")):
        return None
    from trl import ModelConfig

    names = ModelConfig.__dataclass_fields__
    return quantization_config(ModelConfig(**{name: value for name, value in loading.items() if name in names}))
