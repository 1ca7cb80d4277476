"""A reward model from rankings: three answers, or more, that a person has put in order.

Papers: Plackett, 1975, and Luce, 1959, as a listwise loss (ListMLE, Xia et al., 2008,
https://dl.acm.org/doi/10.1145/1390156.1390306); for reward models in Zhu et al., 2023
(https://huggingface.co/papers/2301.11270), section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.trainers import stage_rules
from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    DataRef,
    Issue,
    ModelRef,
    StageContext,
    StageFacts,
    StageResult,
)

__all__ = ["RankingModel"]


@dataclass
class RankingModel:
    """Trains a scalar head to score completions in the order in which they are ranked.

    With `eval_dataset`, accuracy and calibration are measured at the end on the pairs that its rankings order:
    `pair_accuracy`, `calibration_error` and `calibration.json`.

    Args:
        model: what to start from, with a new head; or an earlier reward model without an adapter, with the head it has.
        dataset: `prompt` and `completions`, a list, the best first; equal values in a column `scores` are ties.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `RankingConfig`.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("posttrain_plugins.trainers.ranking:RankingConfig")] = field(
        default_factory=dict
    )

    produces: ClassVar[str] = "reward"
    refuses: ClassVar[dict[str, str]] = {
        "embeds": "without token ids a classifier does not see where the padding starts, and would score that"
    }
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("dataset", "eval_dataset"), (("prompt", "completions"),)
    )

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield the first row that is no ranking."""
        yield from stage_rules.first_concern(facts.rows, stage_rules.ranking_concern)

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.evaluation.calibration import calibrate
        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.ranking import RankingConfig, RankingTrainer, pairs_of

        result = training.train(context, RankingTrainer, RankingConfig, self.args, task_type="SEQ_CLS")
        # as pairs, so that its figures can be laid beside those of a reward model on pairs
        rankings = context.inputs.get("eval_dataset")
        if rankings is not None:
            calibrate(context, result, [pair for row in rankings for pair in pairs_of(row)])
        return result
