"""`well_formed`: keeps the rows of a data set whose completion has the form of a haiku. No paper."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_haiku.form import share_of_form
from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.types import DataRef, StageContext, StageResult


@dataclass
class WellFormed:
    """Keeps what has the form of a haiku.

    Args:
        dataset: `prompt` and `completion`.
        threshold: the share of right lines that is enough.
    """

    dataset: DataRef
    threshold: float = 1.0

    produces: ClassVar[str] = "dataset"
    requires_columns: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {"dataset": (("prompt", "completion"),)}
    example_params: ClassVar[dict[str, Any]] = {
        "dataset": [
            {"prompt": "haiku", "completion": "an old silent pond\na frog is in the water\nsplash of the water"},
            {"prompt": "haiku", "completion": "pond"},
        ]
    }

    def __call__(self, context: StageContext) -> StageResult:
        """Writes `rows.jsonl`; what it finds too few is told before a model is trained on nothing."""
        rows = [dict(row) for row in context.inputs["dataset"]]
        kept = [row for row in rows if share_of_form(to_text(row["completion"])) >= self.threshold]
        if not kept:
            raise InputError(f"stage '{context.stage}' keeps none of {len(rows)} rows", hint="lower its threshold")
        file = context.folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        return StageResult(metrics={"rows": float(len(rows)), "kept": float(len(kept))}, data_path=file)
