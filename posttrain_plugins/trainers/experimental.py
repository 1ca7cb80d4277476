"""TRL's experimental trainers under the calling convention of its stable ones.

They take no `quantization_config`, load in another dtype than the stable ones, and some want the tokenizer handed in.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

__all__ = ["experimental", "stable_call"]


def experimental(name: str) -> Any:
    """The module `trl.experimental.<name>`; who names such a stage knows what it is, so TRL's warning is left out."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return importlib.import_module(f"trl.experimental.{name}")


def stable_call(trainer_class: Any) -> Callable[..., Any]:
    """What stands for the class in `training.train`: the tokenizer is loaded, quantization goes to the model."""

    def build(*, model: Any, args: Any, **kwargs: Any) -> Any:
        quantization = kwargs.pop("quantization_config", None)
        loading = dict(args.model_init_kwargs or {})
        if quantization is not None:
            loading["quantization_config"] = quantization
        if isinstance(model, str):
            args.model_init_kwargs = {"dtype": "float32", **loading}  # as TRL's stable trainers
            kwargs.setdefault("processing_class", _tokenizer(model, loading.get("revision")))
        return trainer_class(model=model, args=args, **kwargs)

    return build


def _tokenizer(path: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, revision=revision or "main", padding_side="left")
