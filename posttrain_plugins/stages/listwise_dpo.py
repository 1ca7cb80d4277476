"""DPO on rankings: the whole order of a prompt's completions, not pairs.

Papers: Rafailov et al., 2023 (https://huggingface.co/papers/2305.18290), appendix A.3, the Plackett-Luce form of DPO;
LiPO, Liu et al., 2024 (https://huggingface.co/papers/2402.01878).
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

__all__ = ["ListwiseDPO"]


@dataclass
class ListwiseDPO:
    """Makes the likelihood ratios of a prompt's completions follow their ranking.

    Args:
        model: what to start from, and the reference.
        dataset: `prompt` and `completions`, a list, the best first; equal values in a column `scores` are ties.
            Rows with a completion longer than `args.max_length`, with its prompt, are left out.
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
    reference: ClassVar[str] = "model"  # as of DPO, in every case
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("dataset", "eval_dataset"), (("prompt", "completions"),)
    )

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield options that only pairs have, and the first row that is no ranking."""
        yield from stage_rules.pair_concerns(facts.args, "listwise DPO")
        yield from stage_rules.first_concern(facts.rows, stage_rules.ranking_concern)

    def __call__(self, context: StageContext) -> StageResult:
        from trl import DPOConfig

        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.listwise_dpo import ListwiseDPOTrainer

        return training.train(context, ListwiseDPOTrainer, DPOConfig, self.args)
