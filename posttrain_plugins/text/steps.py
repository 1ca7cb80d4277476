"""Find where each step of a completion ends, and make one score out of the scores of its steps.

Strategies, rewards, `sample` and the trainers share this one rule: a step ends after a separator, an empty line by
default; what follows the last separator is the last step, so the steps joined are the completion again. Tags and the
answer belong to the step in which they stand. Replace the rule by giving another `separator` wherever a plugin or stage
has a field of that name. Papers: Lightman et al., 2023 (https://huggingface.co/papers/2305.20050), section 2, which has
one step per line; Snell et al., 2024 (https://huggingface.co/papers/2408.03314), section 5.1 and appendix E, for the
aggregation.

Example:
    >>> split_steps("3+4=7\\n\\n7*2=14\\n\\nanswer is 14")
    ['3+4=7\\n\\n', '7*2=14\\n\\n', 'answer is 14']
    >>> step_ends("3+4=7;7*2=14", separator=";")
    [6, 12]
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Literal, TypeAlias

__all__ = ["SEPARATOR", "Aggregate", "aggregate", "closed_steps", "last_tokens", "split_steps", "step_ends"]

SEPARATOR = "\n\n"

Aggregate: TypeAlias = Literal["min", "prod", "last", "mean"]

_REDUCE: dict[Aggregate, Callable[[Sequence[float]], float]] = {
    "min": min,
    "prod": math.prod,
    "last": lambda scores: scores[-1],
    "mean": fmean,
}


def split_steps(text: str, separator: str = SEPARATOR) -> list[str]:
    """Split a completion into its steps, each with its separator; no step is empty, and joined they are the text."""
    *ended, rest = text.split(separator)
    # An empty step has no token of its own, so no model could score it: two separators in a row are two steps, but
    # what follows a final separator is none.
    return [step for step in (*(step + separator for step in ended), rest) if step]


def step_ends(text: str, separator: str = SEPARATOR) -> list[int]:
    """Return where each step ends: the offset of the character behind it; the last is `len(text)`."""
    return list(accumulate(map(len, split_steps(text, separator))))


def closed_steps(steps: Sequence[str], separator: str = SEPARATOR) -> list[str]:
    """Return a completion's steps, each but the last with its separator at its end: joined they are the completion.

    Example:
        >>> closed_steps(["3+4=7", "7*2=14;", "14"], separator=";")
        ['3+4=7;', '7*2=14;', '14']
    """
    return [step if step.endswith(separator) else step + separator for step in steps[:-1]] + list(steps[-1:])


def aggregate(scores: Sequence[float], how: Aggregate) -> float | None:
    """Make one score out of those of the steps of a completion.

    Returns:
        None where there is no step: nothing can be said of it, which is not the same as a score of 0.

    Example:
        >>> [aggregate([0.9, 0.5, 0.8], how) for how in ("min", "last", "mean")]
        [0.5, 0.8, 0.7333333333333334]
    """
    # A NaN is handed on, not taken for None, so that a guard counts a broken model; `min` alone might pass it over.
    if any(map(math.isnan, scores)):
        return math.nan
    return float(_REDUCE[how](scores)) if scores else None


def last_tokens(token_starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Find the last token of each step: the one that holds the character before the step's end.

    Args:
        token_starts: T offsets, ascending: where each token starts in the text.
        ends: offsets behind the last character of each step, in the same text.

    Returns:
        An index into the tokens for each end. A text is tokenised as one, so training and test time agree.

    Example:
        >>> last_tokens([0, 2, 5], ends=[2, 7])
        [0, 2]
    """
    # A token may reach over the end of a step; the one that starts before the end is the first to have read all of it.
    return [max(0, bisect_left(token_starts, end) - 1) for end in ends]  # one for each step
