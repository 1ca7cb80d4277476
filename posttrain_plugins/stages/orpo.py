"""Odds ratio preference optimisation by `trl.experimental.orpo.ORPOTrainer`, without a reference model.

Paper: Hong et al., 2024 (https://huggingface.co/papers/2403.07691).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelRef, StageContext, StageResult

__all__ = ["ORPO"]


@dataclass
class ORPO:
    """SFT on chosen completions with a penalty on the odds of rejected ones, in one stage.

    Args:
        model: what to start from.
        dataset: `chosen` + `rejected`, with or without `prompt`.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `trl.experimental.orpo.ORPOConfig`.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl.experimental.orpo:ORPOConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    refuses: ClassVar[dict[str, str]] = {
        "embeds": "TRL's trainer lays the logits beside the text, and those of the learned tokens come first"
    }
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("chosen", "rejected"),))

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.experimental import as_stable, load_experimental

        orpo = load_experimental("orpo")
        # experimental, so it takes no `quantization_config` and would load the model in another dtype
        return training.train(context, as_stable(orpo.ORPOTrainer), orpo.ORPOConfig, self.args)
