"""Curves for a page: few points that keep every minimum and maximum, read as a training writes them. No paper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from posttrain_plugins.record.figures import StepFigures

__all__ = ["Curve", "Curves", "thinned"]

MAX_POINTS = 1_000
# What a reader wants to see of a stage first; the rest by name.
FIRST = (
    "reward",
    "loss",
    "rewards/",
    "kl",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "reward_std",
    "eval_",
    "mean_token_accuracy",
    "accuracy",
    "grad_norm",
    "learning_rate",
)


@dataclass
class Curve:
    """One figure over the steps of a stage.

    Args:
        steps: at which it is known, going up.
        values: as many, all finite.
        lost: how often it was no finite number.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lost: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the thinned points, and the whole curve's first, last, lowest and highest value."""
        steps, values = thinned(self.steps, self.values)
        return {"x": steps, "y": [_short(value) for value in values], "n": len(self.values), "lost": self.lost}

    def summary(self) -> dict[str, float]:
        """Return the first, last, lowest and highest value, and where these two are."""
        low = min(range(len(self.values)), key=self.values.__getitem__)
        high = max(range(len(self.values)), key=self.values.__getitem__)
        return {
            "first": self.values[0],
            "last": self.values[-1],
            "low": self.values[low],
            "low_step": self.steps[low],
            "high": self.values[high],
            "high_step": self.steps[high],
        }


@dataclass
class Curves:
    """All figures of a stage, fed step by step."""

    by_name: dict[str, Curve] = field(default_factory=dict)
    seconds: float | None = None
    step: int = 0
    total: int | None = None

    def feed(self, rows: Iterable[StepFigures]) -> None:
        """Take in further steps; a step that comes again replaces what was said of it and after it."""
        for row in rows:
            for name, value in row.figures.items():
                curve = self.by_name.setdefault(name, Curve())
                if not isfinite(value):
                    curve.lost += 1
                    continue
                while curve.steps and curve.steps[-1] >= row.step:
                    curve.steps.pop()
                    curve.values.pop()
                curve.steps.append(row.step)
                curve.values.append(value)
            self.step, self.total = row.step, row.total or self.total
            self.seconds = row.seconds if row.seconds is not None else self.seconds

    def feed_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in lines of a `figures.jsonl`."""
        for row in rows:
            if isinstance(row.get("step"), int) and isinstance(row.get("figures"), dict):
                values = {
                    name: float("nan") if value is None else float(value) for name, value in row["figures"].items()
                }
                self.feed([StepFigures(row["step"], row.get("total"), row.get("seconds"), row.get("at"), values)])

    def lines(self) -> Iterator[StepFigures]:
        """Yield what is known, one figure at a time."""
        for name, curve in self.by_name.items():
            for step, value in zip(curve.steps, curve.values, strict=True):
                yield StepFigures(step, self.total, None, None, {name: value})

    def names(self) -> list[str]:
        """Return the figures that have a value, those that tell most first; one value is no curve, and comes last."""

        def place(name: str) -> tuple[bool, int, str]:
            found = (
                i for i, start in enumerate(FIRST) if name == start or (start[-1] in "/_" and name.startswith(start))
            )
            return len(self.by_name[name].values) < 2, next(found, len(FIRST)), name

        return sorted((name for name, curve in self.by_name.items() if curve.values), key=place)


def thinned(steps: Sequence[int], values: Sequence[float], points: int = MAX_POINTS) -> tuple[list[int], list[float]]:
    """Return at most so many points of a curve: of each stretch its lowest and its highest, in their order.

    Args:
        steps: going up.
        values: as many.
        points: 4 or more.

    Example:
        >>> thinned(range(9), [0, 0, 0, 0, 9, 0, 0, 0, 0], points=4)
        ([0, 1, 4, 8], [0, 0, 9, 0])
    """
    if len(values) <= points:
        return list(steps), list(values)
    inner, kept = len(values) - 2, [0]  # the ends stand as they are
    stretches = (points - 2) // 2
    for i in range(stretches):
        span = range(1 + inner * i // stretches, 1 + inner * (i + 1) // stretches)
        kept += sorted({min(span, key=values.__getitem__), max(span, key=values.__getitem__)})
    kept.append(len(values) - 1)
    return [steps[i] for i in kept], [values[i] for i in kept]


def _short(value: float) -> float:
    # six digits: a tenth of a pixel of the tallest chart, in half the bytes
    return float(f"{value:.6g}")
