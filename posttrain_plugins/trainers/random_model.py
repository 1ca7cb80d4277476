"""A new model of a transformers config, with random weights from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.load import load_tokenizer

__all__ = ["save_random", "tokenizer_from"]


def save_random(folder: Path, tokenizer: Any, fields: Mapping[str, Any], seed: int, dtype: str = "float32") -> None:
    """Save a causal language model and its tokenizer.

    Args:
        folder: where to.
        tokenizer: its pad and EOS ids, and where it is not given the vocabulary's size, go into the config.
        fields: `model_type` and fields of its transformers config.
        seed: of the weights.
        dtype: of the weights.

    Raises:
        InputError: no such model type, or a field that it does not take.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    given = {**fields, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    given.setdefault("vocab_size", len(tokenizer))
    model_type = given.pop("model_type", None)
    if model_type is None:
        raise InputError("a model cannot be built: 'config' has no 'model_type'", hint="model_type: qwen3")
    try:
        config = AutoConfig.for_model(model_type, **given)
    except (TypeError, ValueError) as cause:
        raise InputError(f"a model cannot be built from 'config': {cause}") from cause
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    # `generate` stops by these, and `from_config` does not take them over
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.save_pretrained(str(folder))
    model.save_pretrained(str(folder))


def tokenizer_from(stage: str, given: Any) -> Any:
    """Return a tokenizer from a folder, a Hub id, a function that makes one, or itself.

    Raises:
        InputError: nothing is given.
    """
    if given is None:
        raise InputError(f"stage '{stage}' needs 'tokenizer', or a 'model' to train further")
    if isinstance(given, str | Path):
        return load_tokenizer(given)
    return given() if callable(given) and not hasattr(given, "pad_token_id") else given
