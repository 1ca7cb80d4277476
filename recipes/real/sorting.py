"""Sorting numbers: problems for a small chat model, and the reward that judges them.

Problems are split three ways by a hash of their numbers, so that none of `train` comes up again in `development` or
`exam`, in whatever order its numbers stand and whatever seed and size are asked for. No paper: the task is ours.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text

if TYPE_CHECKING:
    import datasets

SYSTEM = "Answer only."
"""In place of the template's own system message, which is 20 tokens long."""

_MARKER = re.compile(r"^\s*\d+[.)]\s", re.MULTILINE)  # "1. 13" is a list's first line, and 1 no answer
_NUMBER = re.compile(r"\d+")

MAX_REFUSED = 100_000
"""Draws in a row of what is of another split, or was there before, after which no more is looked for."""


@dataclass
class Sorting:
    """Make problems: numbers of two digits, to be written in ascending order.

    Args:
        split: `train`, `development` (20 % of all problems) or `exam` (20 %).
        part: `problems` have `prompt` and `solution`, `demonstrations` have `prompt` and `completion`.
        size: number of rows, all distinct.
        seed: what is drawn.
        count: numbers in a problem.

    Raises:
        InputError: a size below 1, or fewer than two numbers.

    Example:
        >>> Sorting("train", size=1)()[0]["prompt"][1]["content"]
        'Sort in ascending order: 98 16 20 59'
    """

    split: Literal["train", "development", "exam"]
    part: Literal["problems", "demonstrations"] = "problems"
    size: int = 1000
    seed: int = 0
    count: int = 4

    example_params: ClassVar[dict[str, Any]] = {"split": "train", "size": 8}

    def __post_init__(self) -> None:
        if self.size < 1 or self.count < 2:
            raise InputError(f"sorting cannot use size {self.size} and count {self.count}", hint="size: 1, count: 2")

    @property
    def columns(self) -> tuple[str, str]:
        """The names of the columns, known without making the data."""
        return ("prompt", "solution" if self.part == "problems" else "completion")

    def __call__(self) -> datasets.Dataset:
        import datasets

        return datasets.Dataset.from_list([self._row(numbers) for numbers in self._problems()])

    def _problems(self) -> Iterator[list[int]]:
        rng = random.Random(f"sorting/{self.split}/{self.part}/{self.seed}/{self.count}")
        seen: set[tuple[int, ...]] = set()
        refused = 0
        while len(seen) < self.size:
            numbers = rng.sample(range(10, 100), self.count)
            if tuple(numbers) in seen or split_of(sorted(numbers)) != self.split:
                refused += 1
                if refused == MAX_REFUSED:
                    found = f"sorting cannot use size {self.size}: of {self.count} numbers there are about {len(seen)}"
                    raise InputError(f"{found} problems in split '{self.split}'", hint="take fewer, or a higher count")
                continue
            seen.add(tuple(numbers))
            refused = 0
            yield numbers

    def _row(self, numbers: Sequence[int]) -> dict[str, Any]:
        asked = "Sort in ascending order: " + " ".join(map(str, numbers))
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        answer = " ".join(map(str, sorted(numbers)))
        if self.part == "problems":
            return {"prompt": prompt, "solution": answer}
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def split_of(numbers: Sequence[int]) -> str:
    """Return the split of a problem: one in five is `development`, one in five `exam`.

    Example:
        >>> split_of([1, 2, 3])
        'train'
    """
    part = zlib.crc32(" ".join(map(str, numbers)).encode()) % 10
    return "exam" if part < 2 else "development" if part < 4 else "train"


@dataclass
class InOrder:
    """Compare the last numbers of a completion with those of `solution`: in prose, with commas or in a list too.

    Args:
        mode: `all` gives 1.0 where all are right, `share` the share of places that are right.

    Example:
        >>> InOrder()(completions=["They are 13, 21, 24 and 49.", "13 24 21 49"], solution=["13 21 24 49"] * 2)
        [1.0, 0.0]
        >>> InOrder("share")(completions=["13 24 21 49", "1. 13\\n2. 21"], solution=["13 21 24 49"] * 2)
        [0.5, 0.5]
    """

    mode: Literal["all", "share"] = "all"

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("solution",)
    oracle: ClassVar[bool] = True

    def __call__(self, completions: Sequence[Any], solution: Sequence[str], **columns: Any) -> list[float]:
        """Score each of B completions in [0, 1]."""
        scores = []
        for completion, reference in zip(completions, solution, strict=True):
            expected = reference.split()
            # what stands in front may be the question again
            found = _NUMBER.findall(_MARKER.sub("", to_text(completion)))[-len(expected) :]
            share = sum(map(str.__eq__, found, expected)) / len(expected)
            scores.append(float(share == 1.0) if self.mode == "all" else share)
        return scores
