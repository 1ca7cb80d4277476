"""Compares an independent reward with the trained one over the course of training, on the rollouts that it saved.

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

__all__ = ["Audit", "TrainingPart", "audit"]

Verdict = Literal["rises with it", "does not rise with it", "falls while it rises", "the trained reward did not rise"]


@dataclass(frozen=True)
class TrainingPart:
    """The figures of a part of training.

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
    """How both rewards changed over training.

    Args:
        trained: the name of the trained one.
        independent: the name of the independent one.
        parts: from the first steps to the last.
        trained_change: last part minus first, with its 95 % interval.
        independent_change: the same of the independent one.
    """

    trained: str
    independent: str
    parts: tuple[TrainingPart, ...]
    trained_change: Interval
    independent_change: Interval

    @property
    def verdict(self) -> Verdict:
        """Return the verdict, by whether the intervals of the changes leave out 0."""
        # first the trained one: if that did not rise, the other one's change says nothing about it
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
    """Compare the reward that was trained with the `scores` of another.

    Args:
        rollouts: of an RL stage.
        scores: one for each of its rows.
        independent: the name of the reward that gave them.
        trained: one of the rewards that were saved; by default their weighted sum.
        parts: how many parts training is cut into, by steps.

    Raises:
        InputError: the rows tell no step or no reward, or too few steps.
    """
    known, pairs = rollouts.rewards, []
    for row, score in zip(rollouts.rows, scores, strict=True):
        if "global_step" not in row or not row.get("rewards"):
            message = f"{rollouts.file} has rows without 'global_step' and 'rewards'"
            raise InputError(message, hint="audit what grpo, rloo or ppo saved")
        if trained is not None and trained not in known:
            raise InputError(f"no reward '{trained}' was trained", hint=f"saved are {', '.join(known)}")
        value = row.get("weighted_reward") if trained is None else row["rewards"].get(trained)
        if value is not None and score is not None:  # only what both judge can be compared
            pairs.append((int(row["global_step"]), value, score))
    steps = sorted({step for step, _, _ in pairs})
    if len(steps) < 2:
        raise InputError(
            f"{rollouts.name} has {len(steps)} steps that both rewards judge, expected 2 at least", hint="train longer"
        )
    # by steps and not by rows: the completions of one step come from one policy, and belong together
    cut = [steps[len(steps) * i // parts] for i in range(min(parts, len(steps)))] if len(steps) > parts else steps
    bounds = [*dict.fromkeys(cut), steps[-1] + 1]
    groups = [[p for p in pairs if low <= p[0] < high] for low, high in pairwise(bounds)]
    _, *first = zip(*groups[0], strict=True)
    _, *last = zip(*groups[-1], strict=True)
    changes = (_change(before, after) for before, after in zip(first, last, strict=True))
    return Audit(trained or "weighted sum", independent, tuple(map(_part, groups)), *changes)


def _part(group: Sequence[tuple[int, float, float]]) -> TrainingPart:
    import pandas

    steps, trained, independent = zip(*group, strict=True)
    frame = pandas.DataFrame({"trained": trained, "independent": independent})
    # by ranks: the two rewards have no common unit, and nothing says that one is a straight line of the other
    agreement = float(frame.corr(method="spearman").iloc[0, 1])
    means = mean_interval(trained), mean_interval(independent)
    return TrainingPart(min(steps), max(steps), len(group), *means, agreement)


def _change(before: Sequence[float], after: Sequence[float], draws: int = 2000) -> Interval:
    """Return the difference of two means with its bootstrap interval."""
    import numpy as np

    noise = np.random.default_rng(0)  # the same audit gives the same interval
    first, last = (np.asarray(values, dtype=float) for values in (before, after))
    # each is drawn anew by itself, not in pairs: early and late completions are other ones
    means = [last[noise.integers(len(last), size=len(last))].mean() for _ in range(draws)]
    others = [first[noise.integers(len(first), size=len(first))].mean() for _ in range(draws)]
    low, high = np.percentile(np.subtract(means, others), [2.5, 97.5])
    return Interval(float(last.mean() - first.mean()), float(low), float(high))
