"""Contrastive preference optimisation by `trl.experimental.cpo.CPOTrainer`, without a reference model; SimPO as a loss.

Papers: Xu et al., 2024 (https://huggingface.co/papers/2401.08417); SimPO, Meng et al., 2024
(https://huggingface.co/papers/2405.14734): `args: {loss_type: simpo, cpo_alpha: 0.0, simpo_gamma: 0.5}`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelRef, StageContext, StageResult

__all__ = ["CPO"]


@dataclass
class CPO:
    """Raises the likelihood of chosen completions over rejected ones, without a reference model.

    Args:
        model: what to start from.
        dataset: `chosen` + `rejected`, with or without `prompt`.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `trl.experimental.cpo.CPOConfig`.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl.experimental.cpo:CPOConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    refuses: ClassVar[dict[str, str]] = {
        "embeds": "TRL's trainer lays the logits beside the text, and those of the learned tokens come first"
    }
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("chosen", "rejected"),))

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.experimental import as_stable, load_experimental

        cpo = load_experimental("cpo")
        # experimental, so it takes no `quantization_config` and would load the model in another dtype
        return training.train(context, as_stable(cpo.CPOTrainer), cpo.CPOConfig, self.args)
