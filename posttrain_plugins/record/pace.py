"""How fast a stage goes: the median of its last steps, what is left of it, and for how long it has said nothing.

The first steps compile, fill caches and load; a mean over all would be wrong for long. No paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

__all__ = ["LAST", "Pace", "pace"]

LAST = 20  # steps that the median is of
QUIET_MEDIANS = 2.0
QUIET_SECONDS = 5.0  # a person who looks for less has not waited yet


@dataclass(frozen=True)
class Pace:
    """How fast a stage goes.

    Args:
        median_s: of its last steps, each.
        left_s: seconds to its end at that pace; None where it has not said how much there is.
        last: the clock's time when it said something last.
    """

    median_s: float
    left_s: float | None
    last: float

    def quiet_s(self, now: float) -> float | None:
        """Return for how long there was no step, if that is longer than steps take; else None."""
        quiet = now - self.last
        return quiet if quiet > max(QUIET_MEDIANS * self.median_s, QUIET_SECONDS) else None


def pace(points: Sequence[tuple[int, float]], total: int | None, last: float) -> Pace | None:
    """Return the pace of a stage, None before its second step.

    Args:
        points: how far it was, and at what time; the last `LAST` + 1 of them count.
        total: how far it goes.
        last: the time of the last, on the clock that `Pace.quiet_s` is asked by.
    """
    # an evaluation tells its figures many times between two steps; a step's time is from the first word of where it was
    firsts = [point for index, point in enumerate(points) if index == 0 or point[0] != points[index - 1][0]]
    steps = [(b - a, d - c) for (a, c), (b, d) in pairwise(firsts[-LAST - 1 :]) if b > a]  # a resume goes back
    if not steps:
        return None
    each = median(seconds / count for count, seconds in steps)
    left = max(0, total - points[-1][0]) * each if total else None
    return Pace(each, left, last)
