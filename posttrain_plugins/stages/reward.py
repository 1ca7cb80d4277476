"""A Bradley-Terry reward model by `trl.RewardTrainer`.

Paper: Ouyang et al., 2022 (https://huggingface.co/papers/2203.02155), equation 1. With TRL alone:
`examples/plain_trl/reward.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelRef, StageContext, StageResult

__all__ = ["RewardModeling"]


@dataclass
class RewardModeling:
    """Trains a scalar head to score chosen completions above rejected ones.

    The stage's name can stand wherever a reward can: in `rewards:` of another stage, or as a strategy's `scorer`.
    With `eval_dataset`, pair accuracy and calibration are measured at the end on held-out pairs: `eval_accuracy`,
    `pair_accuracy`, `calibration_error`, and `calibration.json` with what the model says and how often it is right.
    A column `margin` says how much better the chosen one is; `args.center_rewards_coefficient` centres the scores.

    Args:
        model: what to start from, with a new head; or an earlier reward model without an adapter, with the head it has.
        dataset: `chosen` + `rejected`, with or without `prompt`.
        adapter: what is trainable beside the head; everything where it is left out.
        eval_dataset: held-out pairs.
        args: fields of `trl.RewardConfig`.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:RewardConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "reward"  # so its name may stand wherever a recipe names a reward
    refuses: ClassVar[dict[str, str]] = {
        "embeds": "without token ids a classifier does not see where the padding starts, and would score that"
    }
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("chosen", "rejected"),))

    def __call__(self, context: StageContext) -> StageResult:
        from trl import RewardConfig, RewardTrainer

        from posttrain_plugins.evaluation.calibration import calibrate
        from posttrain_plugins.trainers import training

        result = training.train(context, RewardTrainer, RewardConfig, self.args, task_type="SEQ_CLS")
        # held-out pairs alone: on those that it was trained on, a reward model is sure and right
        pairs = context.inputs.get("eval_dataset")
        if pairs is not None:
            calibrate(context, result, [dict(row) for row in pairs])
        return result
