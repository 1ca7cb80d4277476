"""Steps of a completion: where one ends. Strategies, rewards, `sample` and the trainers share this one rule.

A step ends after a separator, an empty line unless told; what follows the last separator is the last step, so the steps
joined are the completion again. Tags and the answer belong to the step in which they stand. Replace the rule by giving
another `separator` wherever a plugin or stage has a field of that name. Paper: Lightman et al., 2023
(https://huggingface.co/papers/2305.20050), section 2, which has one step per line.

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
from typing import Literal, TypeAlias

__all__ = ["SEPARATOR", "Aggregate", "aggregate", "last_tokens", "split_steps", "step_ends"]

SEPARATOR = "\n\n"

Aggregate: TypeAlias = Literal["min", "prod", "last", "mean"]


def split_steps(text: str, separator: str = SEPARATOR) -> list[str]:
    """The steps of a completion, each with its separator; no step is empty, and joined they are the text."""
    pieces = text.split(separator)
    steps = [piece + separator for piece in pieces[:-1]] + pieces[-1:]
    return [step for step in steps if step]


def step_ends(text: str, separator: str = SEPARATOR) -> list[int]:
    """Where each step ends: the offset of the character behind it; the last is `len(text)`."""
    return list(accumulate(map(len, split_steps(text, separator))))


def aggregate(scores: Sequence[float], how: Aggregate) -> float:
    """One score for a path from those of its steps (Snell et al., 2024, https://huggingface.co/papers/2408.03314,
    section 5.1 and appendix E); 0.0 where there is no step.

    Example:
        >>> [aggregate([0.9, 0.5, 0.8], how) for how in ("min", "last", "mean")]
        [0.5, 0.8, 0.7333333333333334]
    """
    if not scores:
        return 0.0
    reduce: dict[str, Callable[[Sequence[float]], float]] = {
        "min": min,
        "prod": math.prod,
        "last": _last,
        "mean": _mean,
    }
    return float(reduce[how](scores))


def last_tokens(token_starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Of each step its last token: the one that holds the character before the step's end.

    Args:
        token_starts: T offsets, ascending: where each token starts in the text.
        ends: offsets behind the last character of each step, in the same text.

    Returns:
        An index into the tokens for each end. A text is tokenised as a whole, so training and test time agree.

    Example:
        >>> last_tokens([0, 2, 5], ends=[2, 7])
        [0, 2]
    """
    return [max(0, bisect_left(token_starts, end) - 1) for end in ends]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _last(values: Sequence[float]) -> float:
    return values[-1]
