"""Direct preference optimisation by `trl.DPOTrainer`, all losses of TRL.

Paper: Rafailov et al., 2023 (https://huggingface.co/papers/2305.18290). With TRL alone: `examples/plain_trl/dpo.py`.

The reference model is the model that the stage starts from: TRL loads it again from the same path, or switches the new
adapter off, or keeps a frozen copy of the adapter that is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelRef, StageContext, StageResult

__all__ = ["DPO"]


@dataclass
class DPO:
    """Raises the likelihood of chosen completions over rejected ones.

    Args:
        model: what to start from, and the reference.
        dataset: `chosen` + `rejected`, with or without `prompt`.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `trl.DPOConfig`.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:DPOConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    reference: ClassVar[str] = "model"  # in every case: no argument of DPO's does without one
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("chosen", "rejected"),))

    def __call__(self, context: StageContext) -> StageResult:
        from trl import DPOConfig, DPOTrainer

        from posttrain_plugins.trainers import training

        return training.train(context, DPOTrainer, DPOConfig, self.args)
