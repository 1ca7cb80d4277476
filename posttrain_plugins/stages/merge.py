"""Adapters merged into their base by PEFT's `merge_and_unload`; a quantized base is dequantized first.

What that changed is measured on a few prompts, as the difference of logits. No paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.backends.transformers.chat import render
from posttrain_plugins.errors import InputError
from posttrain_plugins.models import merge
from posttrain_plugins.models.load import load_tokenizer
from posttrain_plugins.types import DataRef, Issue, ModelArtifact, ModelRef, StageContext, StageFacts, StageResult

__all__ = ["Merge"]


NOTHING = "use the model itself, or {use: export} to write it elsewhere"


@dataclass
class Merge:
    """Merges a model's adapters into its base: a plain full model, with tokenizer, template and generation config.

    In a recipe whose `model` says `load_in_4bit`, later stages load the result in 4 bits again; outside the recipe it
    is loaded as it was saved.

    Args:
        model: an adapter, or a stack of them.
        dataset: prompts on which the logits before and after are compared; random tokens where it is left out.
        num_prompts: how many of them.
        dtype: of the merged weights; by default that of the recipe's `model`, else float32.
    """

    model: ModelRef
    dataset: DataRef | None = None
    num_prompts: int = 8
    dtype: str | None = None

    produces: ClassVar[str] = "model"
    merges: ClassVar[bool] = True
    example_params: ClassVar[dict[str, Any]] = {"model": "tiny:adapter"}
    requires_columns: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {"dataset": (("prompt",),)}

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield that there is nothing to merge."""
        if facts.is_adapter is False:
            yield Issue(f"there is nothing to merge: '{self.model}' is no adapter", NOTHING, "model")

    def __call__(self, context: StageContext) -> StageResult:
        artifact: ModelArtifact = context.inputs["model"]
        if not artifact.is_adapter:
            raise InputError(
                f"stage '{context.stage}' has nothing to merge: '{artifact.name}' is no adapter",
                hint=NOTHING,
            )
        merge.check_mergeable(artifact.name, artifact.path)  # by its type, before anything is loaded
        tokenizer = load_tokenizer(artifact.path, artifact.loading, artifact.chat_template)
        dataset = context.inputs.get("dataset")
        if dataset is None:
            ids = merge.random_ids(tokenizer, self.num_prompts, context.seed)
        else:
            ids = [render(tokenizer, prompt) for prompt in dataset["prompt"][: self.num_prompts]]
        plain = merge.load_plain(artifact.path, artifact.loading, dtype=self.dtype, ids=ids)
        folder = context.folder / "model"
        merge.save_plain(plain.model, tokenizer, folder)
        # the weights are plain, whatever the recipe's `model` says of the base
        return StageResult(metrics=plain.metrics, model_path=folder, handoff={"quantization": None})
