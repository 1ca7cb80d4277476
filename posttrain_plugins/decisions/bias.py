"""Whether an annotator prefers a place on the screen, whatever stands there.

Interval: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927), equation 4, at 95 %.

1. Of a choice counts how many of the others stood behind the chosen one: 1 where it was first, 0 where it was last. Of
   an order each pair of unequals counts so. Without a preference the mean is 0.5, for any number of completions.
2. A decision counts once, as one draw between 0 and 1. With three or more completions it varies less than a coin does,
   so the interval is rather too wide.
3. It tells a bias only where the page shuffled: in a fixed order the place is the model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from posttrain_plugins.decisions.item import Decision

__all__ = ["Preference", "position_preference", "preferences"]

Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True)
class Preference:
    """How often the better one stood before the other on the screen, with its 95 % interval; 0.5 is no preference."""

    mean: float
    low: float
    high: float
    decisions: int

    @property
    def is_biased(self) -> bool:
        """Is 0.5 outside the interval?"""
        return not self.low <= 0.5 <= self.high

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def position_preference(decisions: Iterable[Decision]) -> Preference | None:
    """Measure the preference for what stands first, over choices and orders; None where there are none.

    Args:
        decisions: those with `shown`; others are passed over.
    """
    found = [share for decision in decisions if (share := _share_before(decision)) is not None]
    if not found:
        return None
    count, mean = len(found), sum(found) / len(found)
    middle = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return Preference(mean, max(0.0, middle - half), min(1.0, middle + half), count)


def preferences(decisions: Iterable[Decision]) -> dict[str, Preference]:
    """Measure each annotator's preference for what stands first."""
    by_annotator: dict[str, list[Decision]] = defaultdict(list)
    for decision in decisions:
        by_annotator[decision.annotator].append(decision)
    measured = {name: position_preference(theirs) for name, theirs in by_annotator.items()}
    return {name: found for name, found in measured.items() if found is not None}


def _share_before(decision: Decision) -> float | None:
    """Return the share of pairs whose better one stood first; None where there is no pair."""
    at = {place: i for i, place in enumerate(decision.shown)}
    if decision.choice is not None:
        groups = [[decision.choice], [place for place in at if place != decision.choice]]
    else:
        groups = [list(group) for group in decision.order or ()]
    pairs = [(a, b) for i, group in enumerate(groups) for a in group for lower in groups[i + 1 :] for b in lower]
    is_first = [at[a] < at[b] for a, b in pairs if a in at and b in at]
    return sum(is_first) / len(is_first) if is_first else None
