"""How well a reward model's margins tell which of two completions people prefer: accuracy and calibration.

Under Bradley-Terry the margin of two scores is a log-odds (https://huggingface.co/papers/2203.02155, equation 1), so a
model that says 80 % should be right in 80 % of such pairs. Papers: expected calibration error, Naeini et al., 2015, and
Guo et al., 2017 (https://huggingface.co/papers/1706.04599), equation 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from posttrain_plugins.backends.transformers.classifier import Classifier
from posttrain_plugins.text.reward_input import TEMPLATE_COLUMNS, reward_input_ids
from posttrain_plugins.types import ModelArtifact, StageContext, StageResult

__all__ = ["Bin", "Calibration", "calibrate", "calibration", "score_pairs", "write"]

BINS = 5


@dataclass(frozen=True)
class Bin:
    """Pairs of about the same confidence: from, to, how many, what the model says on average, how often it is right."""

    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """`accuracy` over all pairs (a tie counts half), `error` the expected calibration error, both in [0, 1]."""

    pairs: int
    accuracy: float
    error: float
    bins: tuple[Bin, ...]


def calibration(margins: Sequence[float], bins: int = BINS) -> Calibration:
    """Return the accuracy and calibration of a reward model on pairs.

    Args:
        margins: score of the chosen less that of the rejected completion, one for each pair.
        bins: of equal width over confidences from 0.5 to 1.

    Example:
        >>> calibration([2.0, 2.0, 2.0, -2.0]).accuracy
        0.75
    """
    # folded at 0.5: the order of a pair is ours, so a margin of -2 is the same confidence in the other completion
    # (500 keeps `exp` from overflowing, and is 1.0 long before)
    sure = [1 / (1 + math.exp(-min(abs(margin), 500.0))) for margin in margins]
    right = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
    edges = [0.5 + 0.5 * i / bins for i in range(bins + 1)]
    found = []
    for low, high in pairwise(edges):
        # the last bin holds its upper edge too, which a float reaches at a margin of 37
        inside = [i for i, p in enumerate(sure) if low <= p < high or (p >= 1.0 and high == 1.0)]
        if inside:
            confidence = sum(sure[i] for i in inside) / len(inside)
            accuracy = sum(right[i] for i in inside) / len(inside)
            found.append(Bin(low, high, len(inside), confidence, accuracy))
    count = max(len(margins), 1)
    error = sum(one.pairs * abs(one.confidence - one.accuracy) for one in found) / count
    return Calibration(len(margins), sum(right) / count, error, tuple(found))


def score_pairs(path: str, rows: Sequence[dict[str, Any]], loading: dict[str, Any], batch_size: int) -> list[float]:
    """Return the margins of a reward model on pairs, read as it was trained on them.

    Args:
        path: the model's folder.
        rows: `chosen` and `rejected`, with or without `prompt`, text or messages.
        loading: TRL `ModelConfig` fields.
        batch_size: texts per forward.
    """
    model = Classifier(path, "SequenceClassification", loading=loading)
    try:
        # both sides in one call: `logits` sorts by length, and the more texts it sorts, the less padding it reads
        ids = [_pair_ids(model.tokenizer, row, name) for row in rows for name in ("chosen", "rejected")]
        scores = [0.0] * len(ids)
        for i, logits in model.logits(ids, batch_size):
            scores[i] = float(logits[0])
    finally:
        model.close()  # the stage that asks has its trainer's model in memory too
    return [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]


def calibrate(context: StageContext, result: StageResult, pairs: Sequence[dict[str, Any]]) -> None:
    """Add the figures of the reward model that a stage made, on held-out pairs, to its result."""
    artifact: ModelArtifact = context.inputs["model"]
    assert result.model_path is not None
    # full weights are read as they were saved: the recipe's loading (4 bits, a revision) is that of an adapter's base
    loading = dict(artifact.loading) if (result.model_path / "adapter_config.json").is_file() else {}
    batch_size = int(context.args.get("per_device_eval_batch_size") or 8)
    found = calibration(score_pairs(str(result.model_path), pairs, loading, batch_size))
    write(found, context.folder)
    result.metrics |= {"pair_accuracy": found.accuracy, "calibration_error": found.error}


def write(found: Calibration, folder: Path) -> None:
    """Write `calibration.json` beside the model."""
    text = json.dumps(asdict(found), indent=2)
    (folder / "calibration.json").write_text(text + "\n", encoding="utf-8")


def _pair_ids(tokenizer: Any, row: dict[str, Any], name: str) -> list[int]:
    """Return the tokens of a completion with its prompt, as TRL's reward trainer has them."""
    options = {column: row[column] for column in TEMPLATE_COLUMNS if column in row}
    return reward_input_ids(tokenizer, row.get("prompt") or "", row[name], **options)
