"""Does an independent reward rise with the trained one? Saved rollouts, scored by both, over the course of training.

Optimising a proxy raises it beyond what it stands for (Gao et al., 2022, https://huggingface.co/papers/2210.10760): the
proxy goes on rising while the gold reward stays or falls. This compares the two on the very completions that the
policy was trained on. It tells what has happened, and gives no early warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from posttrain_plugins.auditing.saved import Rollouts
from posttrain_plugins.errors import InputError
from posttrain_plugins.evaluation.figures import Interval, mean_interval

__all__ = ["Audit", "Part", "audit"]

Verdict = Literal["rises with it", "does not rise with it", "falls while it rises", "the trained reward did not rise"]


@dataclass(frozen=True)
class Part:
    """Some steps of training.

    Args:
        first: the first step.
        last: the last one.
        completions: how many were sampled in them.
        trained: mean of the reward that is trained, with its 95 % interval.
        independent: mean of the independent one.
        agreement: rank correlation of the two over these completions (Spearman, 1904); NaN where one is constant.
    """

    first: int
    last: int
    completions: int
    trained: Interval
    independent: Interval
    agreement: float


@dataclass(frozen=True)
class Audit:
    """What became of both rewards.

    Args:
        trained: its name.
        independent: its name.
        parts: from the first steps to the last.
        trained_change: last part minus first, with its 95 % interval.
        independent_change: the same of the independent one.
    """

    trained: str
    independent: str
    parts: tuple[Part, ...]
    trained_change: Interval
    independent_change: Interval

    @property
    def verdict(self) -> Verdict:
        """In four words, by whether the intervals of the changes leave out 0."""
        if self.trained_change.low <= 0:
            return "the trained reward did not rise"
        if self.independent_change.low > 0:
            return "rises with it"
        return "falls while it rises" if self.independent_change.high < 0 else "does not rise with it"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def audit(
    rollouts: Rollouts, scores: Sequence[float | None], independent: str, trained: str | None = None, parts: int = 10
) -> Audit:
    """Compares the reward that was trained with the `scores` of another.

    Args:
        rollouts: of an RL stage.
        scores: one for each of its rows.
        independent: what they are called.
        trained: one of the rewards that were saved; by default their weighted sum.
        parts: how many parts training is cut into, by steps.

    Raises:
        InputError: the rows tell no step or no reward, or too few steps.
    """
    pairs = [
        (int(row["global_step"]), value, score)
        for row, score in zip(rollouts.rows, scores, strict=True)
        if (value := _trained(row, trained, rollouts)) is not None and score is not None
    ]
    steps = sorted({step for step, _, _ in pairs})
    if len(steps) < 2:
        raise InputError(
            f"{rollouts.name} has {len(steps)} steps that both rewards judge, expected 2 at least", hint="train longer"
        )
    cut = [steps[len(steps) * i // parts] for i in range(min(parts, len(steps)))] if len(steps) > parts else steps
    bounds = [*dict.fromkeys(cut), steps[-1] + 1]
    groups = [[p for p in pairs if low <= p[0] < high] for low, high in pairwise(bounds)]
    first, last = groups[0], groups[-1]
    return Audit(
        trained or "weighted sum",
        independent,
        tuple(map(_part, groups)),
        _change([v for _, v, _ in first], [v for _, v, _ in last]),
        _change([s for _, _, s in first], [s for _, _, s in last]),
    )


def _trained(row: dict[str, Any], name: str | None, rollouts: Rollouts) -> float | None:
    if "global_step" not in row or not row.get("rewards"):
        raise InputError(
            f"{rollouts.file} has rows without 'global_step' and 'rewards'", hint="audit what grpo, rloo or ppo saved"
        )
    if name is None:
        return row.get("weighted_reward")
    if name not in rollouts.rewards:
        raise InputError(f"no reward '{name}' was trained", hint=f"saved are {', '.join(rollouts.rewards)}")
    value: float | None = row["rewards"].get(name)
    return value


def _part(group: Sequence[tuple[int, float, float]]) -> Part:
    steps, trained, independent = zip(*group, strict=True)
    return Part(
        min(steps),
        max(steps),
        len(group),
        mean_interval(trained),
        mean_interval(independent),
        _spearman(trained, independent),
    )


def _change(before: Sequence[float], after: Sequence[float], draws: int = 2000) -> Interval:
    """Difference of two means; each is drawn anew by itself, since the completions are other ones."""
    import numpy as np

    noise = np.random.default_rng(0)
    first, last = (np.asarray(values, dtype=float) for values in (before, after))
    means = [last[noise.integers(len(last), size=len(last))].mean() for _ in range(draws)]
    others = [first[noise.integers(len(first), size=len(first))].mean() for _ in range(draws)]
    low, high = np.percentile(np.subtract(means, others), [2.5, 97.5])
    return Interval(float(last.mean() - first.mean()), float(low), float(high))


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    import pandas

    return float(pandas.DataFrame({"first": first, "second": second}).corr(method="spearman").iloc[0, 1])
