"""Running mean and deviation of returns, in whose units a critic learns (van Hasselt et al., 2016).

Paper: https://huggingface.co/papers/1602.07714, PopArt: equations 3 and 4 for the moments, proposition 1 for the head
whose outputs stay what they were.

1. A rollout counts as one step of the running moments, whatever its number of tokens.
2. The moments are divided by what their weights add up to, as Adam's are, so that the first rollout counts in full.
3. A head at 0 has no outputs to keep: the first value that it gives is the mean.
4. The deviation is a hundredth of the root mean square at least: where all returns are equal it would be 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DECAY", "RunningReturns"]

DECAY = 0.99
"""What the moments so far count for, against 0.01 of a new rollout."""
LEAST_SHARE = 0.01


@dataclass
class RunningReturns:
    """Moments of the returns so far.

    Args:
        weighted_sum: of the rollouts' means.
        weighted_square: of the rollouts' mean squares.
        weight: what both are divided by.

    Example:
        >>> returns = RunningReturns()
        >>> returns.add(mean=10.0, square=104.0)
        >>> round(returns.mean, 6), round(returns.deviation, 6)
        (10.0, 2.0)
    """

    weighted_sum: float = 0.0
    weighted_square: float = 0.0
    weight: float = 0.0

    def add(self, mean: float, square: float) -> None:
        """Count one more rollout, by the mean and the mean square of its returns."""
        self.weighted_sum = DECAY * self.weighted_sum + (1 - DECAY) * mean
        self.weighted_square = DECAY * self.weighted_square + (1 - DECAY) * square
        self.weight = DECAY * self.weight + (1 - DECAY)

    @property
    def mean(self) -> float:
        """The running mean; 0 before the first rollout."""
        return self.weighted_sum / self.weight if self.weight else 0.0

    @property
    def deviation(self) -> float:
        """The running standard deviation; 1 before the first rollout that has a return other than 0."""
        square = self.weighted_square / self.weight if self.weight else 0.0
        if square <= 0:
            return 1.0
        return math.sqrt(max(square - self.mean**2, LEAST_SHARE**2 * square))

    def as_dict(self) -> dict[str, Any]:
        """Return what makes another one of the same moments."""
        return asdict(self)
