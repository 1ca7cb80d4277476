"""Figures over problems: means with bootstrap intervals, paired differences, pass@k, and the Pareto front.

Papers: Chen et al., 2021 (https://huggingface.co/papers/2107.03374), equation 1, for the unbiased pass@k. The intervals
are the percentile bootstrap over problems (Efron, 1979): how much another draw of problems would move a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

__all__ = [
    "Interval",
    "difference_interval",
    "mean_interval",
    "pareto",
    "pass_at_k",
    "ratio_interval",
    "sampled_accuracy",
]

DRAWS = 10_000
CHUNK = 2**22  # numbers held at once, however many problems there are


@dataclass(frozen=True)
class Interval:
    """A mean and where 95 % of its bootstrap draws lie; NaN where there is none."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the mean over problems with its 95 % interval.

    Args:
        values: one per problem; NaN (nobody could judge it) is left out, and with an infinite one there is no mean.
        draws: bootstrap draws.
        seed: of the draws.

    Example:
        >>> mean_interval([0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
        Interval(mean=0.6666666666666666, low=0.3333333333333333, high=1.0)
    """
    import numpy as np

    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]  # NaN is "nobody could judge", which is no score of zero
    # an infinite score has no mean to bootstrap, and numpy would warn at each of the draws
    if len(known) == 0 or np.isinf(known).any():
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)  # one seed for all figures: equal scores get equal intervals
    rows = max(1, CHUNK // len(known))
    parts = [min(rows, draws - done) for done in range(0, draws, rows)]
    means = [known[rng.integers(len(known), size=(part, len(known)))].mean(axis=1) for part in parts]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(known.mean()), float(low), float(high))


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return a ratio of sums over rows with its 95 % interval, as of nats per token; NaN where there is nothing.

    Args:
        numerators: one per row.
        denominators: one per row, none below 0.
        draws: bootstrap draws, of rows.
        seed: of the draws.

    Example:
        >>> ratio_interval([2.0, 8.0], [1, 4])
        Interval(mean=2.0, low=2.0, high=2.0)
    """
    import numpy as np

    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if not below.sum() > 0 or not np.isfinite(above).all():
        return Interval(float("nan"), float("nan"), float("nan"))
    above, below = above[below > 0], below[below > 0]  # a row of nothing is no row
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(above))
    ratios = []
    for part in (min(rows, draws - done) for done in range(0, draws, rows)):
        chosen = rng.integers(len(above), size=(part, len(above)))
        ratios.append(above[chosen].sum(axis=1) / below[chosen].sum(axis=1))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


def difference_interval(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Return the mean of `values - baseline`, paired by problem, with its 95 % interval.

    Example:
        >>> difference_interval([1.0, 1.0, 0.5], [0.5, 0.5, 0.0])
        Interval(mean=0.5, low=0.5, high=0.5)
    """
    return mean_interval([value - before for value, before in zip(values, baseline, strict=True)])


def sampled_accuracy(scores: Sequence[Sequence[float | None]]) -> list[float]:
    """Average the scores of each problem's completions; None is left out, NaN where nothing is left.

    Example:
        >>> sampled_accuracy([[1.0, 0.0], [1.0, None]])
        [0.5, 1.0]
    """
    known = [[score for score in row if score is not None] for row in scores]
    return [sum(row) / len(row) if row else float("nan") for row in known]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the chance that one of `k` of `n` completions is right, of which `correct` are: `1 - C(n-c, k) / C(n, k)`.

    Example:
        >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
        (0.25, 0.5, 1.0)
    """
    return 1.0 - comb(n - correct, k) / comb(n, k)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell which points are on the Pareto front: no other is as accurate at the same cost or less, and better in one.

    Args:
        points: accuracy and cost; one with NaN is not on the front.

    Example:
        >>> pareto([(0.5, 10.0), (0.7, 80.0), (0.7, 90.0), (0.4, 20.0)])
        [True, True, False, False]
    """
    known = [(accuracy, cost) for accuracy, cost in points if accuracy == accuracy and cost == cost]
    # of two equal points neither beats the other, so both stand on the front
    return [
        (accuracy, cost) in known
        and not any(best >= accuracy and least <= cost and (best, least) != (accuracy, cost) for best, least in known)
        for accuracy, cost in points
    ]
