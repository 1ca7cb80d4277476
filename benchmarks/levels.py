"""When a curve comes to a level, which is told of a running mean: single steps are too noisy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

__all__ = ["reached", "running_mean"]


def running_mean(values: Sequence[float], size: int) -> list[float]:
    """Return the means of `size` values in a row; empty where there are fewer."""
    return [fmean(values[i : i + size]) for i in range(len(values) - size + 1)]


def reached(values: Sequence[float], level: float, size: int) -> int | None:
    """Return of how many values the last `size` have a mean of `level` for the first time; None if they never have.

    Example:
        >>> reached([0.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0.8, 5), reached([0.5] * 9, 0.8, 5)
        (5, None)
    """
    return next((i + size for i, mean in enumerate(running_mean(values, size)) if mean >= level), None)
