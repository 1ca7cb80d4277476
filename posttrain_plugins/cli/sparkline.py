"""A curve in one line of text. No paper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from statistics import fmean

__all__ = ["sparkline"]

BARS = "▁▂▃▄▅▆▇█"
NOTHING = " "  # of a stretch without a number


def sparkline(values: Sequence[float], cells: int) -> str:
    """Return a curve of at most so many cells, each the mean of its stretch, between the least and the most of these.

    Args:
        values: NaN where there is none.
        cells: how wide it may be.

    Example:
        >>> sparkline([0.0, 1.0, 2.0, float("nan"), 7.0], 5)
        '▁▂▃ █'
        >>> sparkline([3.0, 3.0], 5), sparkline([], 5)
        ('▁▁', '')
    """
    count = min(max(cells, 1), len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else [0]
    parts = [[v for v in values[a:b] if isfinite(v)] for a, b in pairwise(edges)]
    means = [fmean(part) if part else None for part in parts]
    known = [mean for mean in means if mean is not None]
    if not known:
        return NOTHING * count
    low, span = min(known), max(known) - min(known)
    top = len(BARS) - 1
    return "".join(NOTHING if m is None else BARS[round(top * (m - low) / span) if span > 0 else 0] for m in means)
