"""Whether a learned scorer is followed too far: what it likes grows better by its own word, and worse in truth.

Gao et al., 2022, "Scaling laws for reward model overoptimization" (https://huggingface.co/papers/2210.10760): gold
reward against proxy reward, over the KL of best of k from one sample, which is `log k - (k - 1) / k` (section 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain_plugins.evaluation.figures import Interval, difference_interval, mean_interval

__all__ = ["CURE", "Fall", "best_of_k_kl", "find_fall", "proxy_against_gold"]

CURE = (
    "it likes what is wrong among these completions; train it again on pairs of them, vote (self_consistency), or "
    "take the `min` of several scorers"
)


@dataclass(frozen=True)
class Fall:
    """Best of k by a scorer that is worse than best of fewer.

    Args:
        k: of how many, the most that there are.
        over: of how few it was better; 1 is one sample.
        change: of the metric, paired by problem, with its 95 % interval, which is below 0.
    """

    k: int
    over: int
    change: Interval

    def to_json(self) -> dict[str, Any]:
        return {"k": self.k, "over": self.over, **asdict(self.change)}


def find_fall(values: Mapping[int, Sequence[float]]) -> Fall | None:
    """Return the deepest fall of a curve to its end that is more than noise, None where there is none.

    Args:
        values: k -> the metric of the completion that the scorer likes best among k, one per problem.
    """
    last = max(values, default=0)
    changes = {k: difference_interval(values[last], values[k]) for k in values if k < last}
    falls = [Fall(last, k, change) for k, change in changes.items() if change.high < 0]
    return min(falls, key=lambda fall: fall.change.mean, default=None)


def best_of_k_kl(k: int) -> float:
    """Return the KL in nats of best of k from one sample.

    Example:
        >>> round(best_of_k_kl(1), 3), round(best_of_k_kl(8), 3)
        (0.0, 1.204)
    """
    return math.log(k) - (k - 1) / k


def proxy_against_gold(
    proxy: Mapping[int, Sequence[float]], gold: Mapping[int, Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """Return what a scorer thinks of its choice and what it is worth, for each k, as JSON values.

    Args:
        proxy: k -> the scorer's own score of its choice, one per problem.
        gold: k -> the metric of the same.

    Returns:
        k -> `kl` in nats, `proxy` and `gold` with their intervals; of a k for which nobody can tell there is none.
    """
    pairs = {k: (mean_interval(proxy[k]), mean_interval(gold[k])) for k in proxy}
    return {
        str(k): {"kl": best_of_k_kl(k), "proxy": asdict(said), "gold": asdict(true)}
        for k, (said, true) in pairs.items()
        if not (math.isnan(said.mean) or math.isnan(true.mean))
    }
