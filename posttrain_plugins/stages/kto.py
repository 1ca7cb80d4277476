"""Kahneman-Tversky optimisation by `trl.KTOTrainer` (Ethayarajh et al., 2024, https://huggingface.co/papers/2402.01306).

For data where each completion is good or bad by itself: thumbs up or down, a program's verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

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

__all__ = ["KTO"]


@dataclass
class KTO:
    """Raises the likelihood of good completions and lowers that of bad ones; nothing is paired.

    Args:
        model: what to start from, and the reference.
        dataset: `prompt`, `completion` and `label` (a bool), or pairs, which TRL takes apart.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `trl.KTOConfig`.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:KTOConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    reference: ClassVar[str] = "model"  # KTO's KL is estimated against it, whatever `beta` is
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("dataset", "eval_dataset"), (("prompt", "completion", "label"), ("chosen", "rejected"))
    )

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield that all rows are good, or all are bad."""
        from posttrain_plugins.trainers import learnable

        labels = [row["label"] for row in facts.rows if "label" in row]
        if facts.has_all_rows and (problem := learnable.one_class(labels)):
            yield Issue(problem, learnable.ANOTHER_CLASS, "dataset")

    def __call__(self, context: StageContext) -> StageResult:
        from trl import KTOConfig, KTOTrainer

        from posttrain_plugins.trainers import training

        return training.train(context, KTOTrainer, KTOConfig, self.args)
