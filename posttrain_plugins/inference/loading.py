"""Models and tokenizers from folders and Hub ids: full, 4-bit, and PEFT adapters over their base, one or a stack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError

__all__ = ["load_model", "load_tokenizer"]

ADAPTER_CONFIG = "adapter_config.json"


def load_model(
    path: str | Path,
    loading: Mapping[str, Any] | None = None,
    device: str | None = None,
    stack: Sequence[str | Path] = (),
) -> Any:
    """Load a causal language model, or a PEFT adapter with its base.

    Args:
        path: a folder or Hub id.
        loading: TRL `ModelConfig` fields.
        device: by default `cuda` where there is one, else `cpu`; `auto` spreads a model over several GPUs.
        stack: adapter folders from the base up, all in force at once; by default `path` alone.

    Raises:
        InputError: a folder of the stack holds no adapter.
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
    if not stack and not (Path(path) / ADAPTER_CONFIG).is_file():
        return AutoModelForCausalLM.from_pretrained(str(path), **options)
    return _load_adapters([str(folder) for folder in stack or [path]], options)


def load_tokenizer(path: str | Path, loading: Mapping[str, Any] | None = None) -> Any:
    """The tokenizer beside a model; an adapter without one has its base's."""
    from transformers import AutoTokenizer

    config = Path(path) / ADAPTER_CONFIG
    if config.is_file() and not (Path(path) / "tokenizer_config.json").is_file():
        path = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return AutoTokenizer.from_pretrained(str(path), revision=(loading or {}).get("model_revision") or "main")


def _load_adapters(folders: Sequence[str], options: Mapping[str, Any]) -> Any:
    """The first one's base under all of them; what each adds to a layer is added up, as if they were merged in turn."""
    from peft import AutoPeftModelForCausalLM

    for folder in folders:
        if not (Path(folder) / ADAPTER_CONFIG).is_file():
            raise InputError(f"{folder} holds no adapter, expected {ADAPTER_CONFIG} in it")
    first, *more = folders
    model = AutoPeftModelForCausalLM.from_pretrained(first, **options)
    names = [f"adapter_{i}" for i in range(1, len(folders))]
    for name, folder in zip(names, more, strict=True):
        model.load_adapter(folder, adapter_name=name)
    if more:
        model.base_model.set_adapter([*model.active_adapters, *names], inference_mode=True)
    return model


def _quantization(loading: Mapping[str, Any]) -> Any:
    """TRL's own reading of its fields; None where nothing is quantized."""
    if not (loading.get("load_in_4bit") or loading.get("load_in_8bit")):
        return None
    from trl import ModelConfig, get_quantization_config

    names = ModelConfig.__dataclass_fields__
    return get_quantization_config(ModelConfig(**{name: value for name, value in loading.items() if name in names}))
