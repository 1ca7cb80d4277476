"""A model with random weights in any shape, without training: to try what a recipe costs at a real size. No paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.types import ObjectRef, StageContext, StageResult

__all__ = ["RandomInit"]


@dataclass
class RandomInit:
    """Saves a causal language model of `config` with random weights, and its tokenizer.

    Args:
        config: `model_type` and fields of its transformers config; `vocab_size` may be larger than the tokenizer's.
        tokenizer: a folder, a Hub id, or `package.module:attr`, a tokenizer or a function that makes one.
        dtype: of the weights.
    """

    config: dict[str, Any]
    tokenizer: ObjectRef
    dtype: str = "float32"

    produces: ClassVar[str] = "model"
    example_params: ClassVar[dict[str, Any]] = {
        "config": {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32},
        "tokenizer": "posttrain_plugins.tiny_world.tokenizer:tokenizer",
    }

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.trainers.random_model import save_random, tokenizer_from

        folder = context.folder / "model"
        tokenizer = tokenizer_from(context.stage, context.inputs["tokenizer"])
        # nothing is loaded or trained, so a model of any size costs its file alone
        save_random(folder, tokenizer, self.config, context.seed, self.dtype)
        return StageResult(model_path=folder)
