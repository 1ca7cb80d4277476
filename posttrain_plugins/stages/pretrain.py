"""A base model: built from a config and trained on plain text, or trained on further. By `trl.SFTTrainer`. No paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    DataRef,
    Issue,
    ModelArtifact,
    ModelRef,
    ObjectRef,
    StageContext,
    StageFacts,
    StageResult,
)

__all__ = ["Pretrain"]


@dataclass
class Pretrain:
    """Trains on whole documents: a new model of `config` and `tokenizer`, or `model` further (continued pre-training).

    Args:
        dataset: a column `text`; each document should start with the document-start token.
        model: what to train further; leave it out to build one.
        config: `model_type` and fields of its transformers config, such as `{model_type: qwen3, hidden_size: 128}`.
            Vocabulary size and the ids of pad and EOS come from the tokenizer.
        tokenizer: a folder, a Hub id, or `package.module:attr`, a tokenizer or a function that makes one.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `trl.SFTConfig`.
    """

    dataset: DataRef
    model: ModelRef | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: ObjectRef | None = None
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:SFTConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    example_params: ClassVar[dict[str, Any]] = {"model": "tiny"}
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("text",),))

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield what a new model lacks."""
        if self.model is None and self.tokenizer is None:
            yield Issue("it needs 'tokenizer', or a 'model' to train further", "model: base", "tokenizer")
        if self.model is None and "model_type" not in self.config:
            yield Issue("a model cannot be built: 'config' has no 'model_type'", "model_type: qwen3", "config")

    def __call__(self, context: StageContext) -> StageResult:
        from trl import SFTConfig, SFTTrainer

        from posttrain_plugins.trainers import training

        artifact = context.inputs.get("model") or self._new_model(context)
        return training.train(context, SFTTrainer, SFTConfig, self.args, artifact=artifact)

    def _new_model(self, context: StageContext) -> ModelArtifact:
        """Save random weights from the stage's seed to a folder that TRL loads."""

        from posttrain_plugins.trainers.random_model import save_random, tokenizer_from
        from posttrain_plugins.trainers.start import make_once

        def save(folder: Path) -> None:

            tokenizer = tokenizer_from(context.stage, context.inputs.get("tokenizer"))
            save_random(folder, tokenizer, self.config, context.seed)

        return ModelArtifact("initial", str(make_once(context, "initial", save)))
