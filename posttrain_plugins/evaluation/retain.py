"""What a model still can do that it was not trained for: perplexity of texts, accuracy on other tasks.

Fine-tuning on one thing costs others, catastrophic forgetting (McCloskey and Cohen, 1989); what RLHF costs on public
tasks is its alignment tax (Ouyang et al., 2022, https://huggingface.co/papers/2203.02155, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from posttrain_plugins.evaluation.figures import Interval, difference_interval, mean_interval, ratio_interval

__all__ = ["Retained", "flat_retained", "is_lost", "retained_summary"]


@dataclass(frozen=True)
class Retained:
    """One model on one data set that it should not forget.

    Args:
        kind: `perplexity` of a column `text`, or greedy `accuracy` on prompts by the metric.
        values: one per row: nats of a text, or a score, NaN where nobody could judge.
        tokens: one per text; empty for a task.
    """

    kind: Literal["perplexity", "accuracy"]
    values: Sequence[float]
    tokens: Sequence[int] = ()

    @property
    def interval(self) -> Interval:
        """Perplexity over all tokens, or accuracy, with the bootstrap over rows."""
        if self.kind == "accuracy":
            return mean_interval(self.values)
        return _exp(ratio_interval(self.values, self.tokens))

    def over(self, before: Retained) -> Interval | None:
        """Return how it changed from another model, paired by row; None where tokenizers differ.

        Returns:
            The ratio of the perplexities, above 1 where it became worse, or the difference of the accuracies.
        """
        if self.kind == "accuracy":
            return difference_interval(self.values, before.values)
        if self.tokens != before.tokens:  # a nat per token of one is none of the other's
            return None
        return _exp(ratio_interval([a - b for a, b in zip(self.values, before.values, strict=True)], self.tokens))


def retained_summary(
    measured: Mapping[str, Mapping[str, Retained]], ancestors: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the figures of all models as JSON values.

    Args:
        measured: data set -> model -> what it retained.
        ancestors: model -> what it was made from, the nearest first.

    Returns:
        Data set -> `kind`, `rows`, and `models`: model -> `mean`, `low`, `high`, and `over`: the nearest and the first
        of its measured ancestors -> how it changed from them.
    """
    found: dict[str, Any] = {}
    for name, models in measured.items():
        rows = {}
        for model, one in models.items():
            known = [other for other in ancestors[model] if other in models]
            changes = {other: one.over(models[other]) for other in dict.fromkeys((*known[:1], *known[-1:]))}
            told = {other: asdict(change) for other, change in changes.items() if change is not None}
            rows[model] = {**asdict(one.interval), "over": told}
        first = next(iter(models.values()))
        found[name] = {"kind": first.kind, "rows": len(first.values), "models": rows}
    return found


def flat_retained(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures by one name each, for gates: `model/retain/NAME` and `model/retain/NAME/over/OTHER`.

    Every one has `_low` and `_high` beside it; figures that are not numbers are left out.
    """
    figures: dict[str, float] = {}
    for name, found in summary.items():
        for model, one in found["models"].items():
            place = f"{model}/retain/{name}"
            for key, interval in ((place, one), *((f"{place}/over/{o}", c) for o, c in one["over"].items())):
                ends = {key: interval["mean"], f"{key}_low": interval["low"], f"{key}_high": interval["high"]}
                figures |= {end: value for end, value in ends.items() if math.isfinite(value)}
    return figures


def is_lost(kind: str, change: Mapping[str, float]) -> bool:
    """Tell whether a change is for the worse by more than another draw of rows would make it."""
    return change["low"] > 1.0 if kind == "perplexity" else change["high"] < 0.0


def _exp(interval: Interval) -> Interval:
    # a model that went astray has a loss whose exponential is no float any more
    return Interval(*(math.exp(value) if value < 700 else math.inf for value in asdict(interval).values()))
