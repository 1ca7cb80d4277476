"""`my_plugin`: say here what it makes of what, and by which paper."""

import json
from dataclasses import dataclass
from typing import ClassVar

from posttrain_plugins.types import DataRef, RewardRef, StageContext, StageResult


@dataclass
class MyPlugin:
    """Keeps the demonstrations that a reward finds good enough.

    Args:
        dataset: `prompt` and `completion`, and the columns that the reward needs.
        reward: the reward that judges them.
        threshold: the lowest score that is kept.
    """

    dataset: DataRef  # these annotations are the edges of the plan
    reward: RewardRef
    threshold: float = 0.5

    produces: ClassVar[str] = "dataset"
    requires_columns: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {"dataset": (("prompt", "completion"),)}

    def __call__(self, context: StageContext) -> StageResult:
        """Write into `context.folder`, which becomes the artifact."""
        rows = context.inputs["dataset"]  # a `datasets.Dataset`
        columns = {name: rows[name] for name in rows.column_names if name not in ("prompt", "completion")}
        scores = context.inputs["reward"].func(prompts=rows["prompt"], completions=rows["completion"], **columns)
        kept = [row for row, score in zip(rows, scores, strict=True) if score is not None and score >= self.threshold]
        file = context.folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        return StageResult(metrics={"rows": float(len(rows)), "kept": float(len(kept))}, data_path=file)
