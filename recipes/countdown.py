"""Countdown: reach a number from others by `+`, `-`, `*`, one step at a time; one that looks fine can end all hope.

A question is `2358=c`: make 12 of 2, 3, 5 and 8. A number is one character, from ten on a letter. A step takes two of
those that are left and writes what is left then, what they made first: `8+3=b25`. The steps are all of a completion, so
whoever votes does so among ways to the target, not for the target, which the question tells.

Papers: Yao et al., 2023 (https://huggingface.co/papers/2305.10601), section 4.1, the Game of 24; Gandhi et al., 2024
(https://huggingface.co/papers/2404.03683), Countdown. Here numbers stay small, so that a tiny model learns each step.

1. Every number on the way is from 1 to `largest`, and there is no division.
2. Demonstrations are solutions alone, without the search that finds them.
"""

from __future__ import annotations

import operator
import random
import re
import string
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import last_user_text, to_text
from posttrain_plugins.text.steps import split_steps
from posttrain_plugins.types import Prompt

if TYPE_CHECKING:
    import datasets

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
DIGITS = string.digits + string.ascii_lowercase
LARGEST = 12
MAX_REFUSED = 10_000
"""Draws in a row that give no new problem of the split, after which no more is looked for."""
Numbers = tuple[int, ...]
Split = Literal["train", "development", "exam"]

# At most six numbers: what is longer is no problem of ours, and brute force would take for ever.
_QUESTION = re.compile(r"([1-9a-z]{2,6})=([1-9a-z])")
_STEP = re.compile(r"([1-9a-z])([-+*])([1-9a-z])=([1-9a-z]+)")


def written(numbers: Sequence[int]) -> str:
    """Return the numbers in one character each.

    Example:
        >>> written((11, 2, 5)), read("b25")
        ('b25', (11, 2, 5))
    """
    return "".join(DIGITS[number] for number in numbers)


def read(text: str) -> Numbers:
    """Return the numbers as they were before they were written."""
    return tuple(map(DIGITS.index, text))


def moves(left: Numbers, largest: int = LARGEST) -> Iterator[tuple[str, Numbers]]:
    """Yield every step from the numbers that are left, as it is written, and what is left behind it.

    Example:
        >>> list(moves((5, 8), largest=20))
        [('8+5=d', (13,)), ('8-5=3', (3,))]
    """
    for i, j in combinations(range(len(left)), 2):
        high, low = max(left[i], left[j]), min(left[i], left[j])
        rest = left[:i] + left[i + 1 : j] + left[j + 1 :]
        for sign, apply in OPERATORS.items():
            if 1 <= (value := apply(high, low)) <= largest:
                yield f"{DIGITS[high]}{sign}{DIGITS[low]}={written((value, *rest))}", (value, *rest)


def is_reachable(target: int, left: Numbers, largest: int = LARGEST) -> bool:
    """Return whether some steps lead from the numbers that are left to the target alone.

    Example:
        >>> is_reachable(12, (11, 2, 5)), is_reachable(12, (10, 11))
        (True, False)
    """
    return target in _reachable(tuple(sorted(left)), largest)  # in any order, which saves most of the search


@cache
def _reachable(left: Numbers, largest: int) -> frozenset[int]:
    if len(left) == 1:
        return frozenset(left)
    return frozenset().union(*(_reachable(tuple(sorted(after)), largest) for _, after in moves(left, largest)))


# --- The data --------------------------------------------------------------------------------------------------------


@dataclass
class Countdown:
    """Make problems that can be solved, solutions of them, or plain text of steps without a plan.

    Args:
        split: `train`, `development` (20 % of all problems) or `exam` (20 %).
        part: `problems` have `prompt` and `solution`, the target; `demonstrations` have `prompt` and a `completion`
            that is one of the solutions; `corpus` has `text`, to pretrain on: steps drawn at random from two numbers or
            more of any size, whatever the target.
        size: number of rows, all of different problems.
        seed: what is drawn.
        count: numbers of a problem, each from 1 to 9; of the corpus at most.
        largest: number on the way.

    Raises:
        InputError: a size below 1, a `count` not from 2 to 6, a `largest` not from 9 to 35, or more problems than there
            are.

    Example:
        >>> row = Countdown("train", "demonstrations", size=1)()[0]
        >>> row["prompt"][0]["content"], row["completion"][0]["content"]
        ('2449=b', '4-2=249;9-2=74;7+4=b')
    """

    split: Split
    part: Literal["problems", "demonstrations", "corpus"] = "problems"
    size: int = 1000
    seed: int = 0
    count: int = 4
    largest: int = LARGEST

    example_params: ClassVar[dict[str, Any]] = {"split": "train", "size": 8}

    def __post_init__(self) -> None:
        if self.size < 1 or not 2 <= self.count <= 6 or not 9 <= self.largest < len(DIGITS):
            found = f"size {self.size}, count {self.count}, largest {self.largest}"
            raise InputError(f"countdown cannot use {found}", hint=f"size: 1, count: 4, largest: {LARGEST}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, known without making the data."""
        by_part = {"problems": ("prompt", "solution"), "demonstrations": ("prompt", "completion"), "corpus": ("text",)}
        return by_part[self.part]

    def __call__(self) -> datasets.Dataset:
        """Make the rows."""
        import datasets

        rng = random.Random(f"countdown/{self.part}/{self.split}/{self.seed}")
        draw = self._played if self.part == "corpus" else self._asked
        return datasets.Dataset.from_list([self._row(*drawn, rng) for drawn in self._distinct(draw, rng)])

    def _distinct(
        self, draw: Callable[[random.Random], tuple[Numbers, int, str]], rng: random.Random
    ) -> Iterator[tuple[Numbers, int, str]]:
        seen: set[tuple[Numbers, int]] = set()
        refused = 0
        while len(seen) < self.size:
            numbers, target, steps = draw(rng)
            if (numbers, target) in seen or not target or split_of(numbers, target) != self.split:
                refused += 1
                if refused == MAX_REFUSED:
                    message = f"size is above the number of problems of split '{self.split}', at most about {len(seen)}"
                    raise InputError(message, hint="take fewer, or a larger count")
                continue
            seen.add((numbers, target))
            refused = 0
            yield numbers, target, steps

    def _asked(self, rng: random.Random) -> tuple[Numbers, int, str]:
        """Draw a problem; its target is 0 where the numbers reach none."""
        numbers = tuple(rng.randint(1, 9) for _ in range(self.count))
        targets = sorted(_reachable(tuple(sorted(numbers)), self.largest))
        return numbers, rng.choice(targets or [0]), ""

    def _played(self, rng: random.Random) -> tuple[Numbers, int, str]:
        """Draw numbers, a target and steps; the target is 0 where these came to no end."""
        numbers = tuple(rng.randint(1, self.largest) for _ in range(rng.randint(2, self.count)))
        steps, left = play(numbers, None, rng, self.largest)
        # A target that the steps have not in mind: a model that has always met it writes it down where it should count.
        return numbers, rng.randint(1, self.largest) if len(left) == 1 else 0, steps

    def _row(self, numbers: Numbers, target: int, steps: str, rng: random.Random) -> dict[str, Any]:
        question = f"{written(numbers)}={DIGITS[target]}"
        if self.part == "corpus":
            return {"text": f"<eos>{question}\n{steps}<eos>"}
        prompt = [{"role": "user", "content": question}]
        if self.part == "problems":
            return {"prompt": prompt, "solution": DIGITS[target]}
        steps, _ = play(numbers, target, rng, self.largest)
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": steps}]}


def play(numbers: Numbers, target: int | None, rng: random.Random, largest: int = LARGEST) -> tuple[str, Numbers]:
    """Draw steps until one number is left or none can be done: those alone that leave the target in reach, if given."""
    steps, left = [], numbers
    while len(left) > 1:
        open_moves = [move for move in moves(left, largest) if target is None or is_reachable(target, move[1], largest)]
        if not open_moves:
            break
        step, left = rng.choice(open_moves)
        steps.append(step)
    return ";".join(steps), left


def split_of(numbers: Numbers, target: int) -> Split:
    """Return the split of a problem: one in five is `development`, one in five `exam`; the order does not count."""
    part = zlib.crc32(f"{sorted(numbers)}={target}".encode()) % 10
    return "exam" if part < 2 else "development" if part < 4 else "train"


# --- The reward ------------------------------------------------------------------------------------------------------


@dataclass
class CountdownSteps:
    """Check steps from the question alone, and look one step ahead, as a person would before going on.

    The authors of tree of thoughts let the model say `sure`, `likely` or `impossible`; here a rule does. A step is
    worth 0.0 where it is no step of what is left, as is all that follows it; 0.5 where it is right and three numbers or
    more are left; with two left 1.0 where one operation makes the target of them, else 0.0; and at the end 1.0 for the
    target. Whole games are not played out, so a first of three steps that ends all hope is worth 0.5. But a solution is
    told from what is none, so whoever draws n completions and has the rule choose does as well as who knows the answer.

    Args:
        mode: `solved` gives 1.0 for a solution, else 0.0; `ahead` what the last step is worth, 0.5 at most where it is
            not the end, and 0.0 where there is none.
        largest: as of the data.

    Raises:
        InputError: for another mode.

    Example:
        >>> prompt, steps = ["2358=c"], ["8+3=b25;5*2=ab;b-a=1"]
        >>> CountdownSteps()(prompts=prompt, completions=steps)
        [0.0]
        >>> CountdownSteps().step_scores(prompts=prompt, completions=steps)
        [[0.5, 0.0, 0.0]]
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "358=a", "completion": "5-3=28;8+2=a", "score": 1.0},
        {"prompt": "358=a", "completion": "5+3=88;8-8=0", "score": 0.0},
        {"prompt": "Hello", "completion": "5-3=28;8+2=a", "score": None},
    )

    mode: Literal["solved", "ahead"] = "solved"
    largest: int = LARGEST

    def __post_init__(self) -> None:
        if self.mode not in ("solved", "ahead"):
            raise InputError(f"countdown steps cannot use mode: {self.mode!r}", hint="mode: solved, or ahead")

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where the prompt holds no problem."""
        scores: list[float | None] = []
        for question, values in self._valued(prompts, completions):
            if question is None:
                scores.append(None)
                continue
            last = values[-1] if values else 0.0
            is_done = len(values) == len(question[1]) - 1  # one number less with each step
            # one that ends before its end is no solution, whatever could be done next
            begun = min(last, 0.5) if self.mode == "ahead" else 0.0
            scores.append(last if is_done else begun)
        return scores

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any
    ) -> list[list[float]]:
        """Return B lists: the value of each step between semicolons, empty where there is none or no problem."""
        return [values for _, values in self._valued(prompts, completions)]

    def _valued(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt]
    ) -> Iterator[tuple[re.Match[str] | None, list[float]]]:
        for prompt, completion in zip(prompts, completions, strict=True):
            question = _QUESTION.fullmatch(last_user_text(prompt).strip())
            steps = [step.removesuffix(";") for step in split_steps(to_text(completion), ";")]
            if question is None:
                yield None, []
                continue
            yield question, step_values(read(question[1]), read(question[2])[0], steps, self.largest)


def step_values(left: Numbers, target: int, steps: Sequence[str], largest: int = LARGEST) -> list[float]:
    """Return what each step is worth.

    Example:
        >>> step_values((2, 3, 5, 8), 12, ["8+3=b25", "b-5=62", "6*2=c"])
        [0.5, 1.0, 1.0]
        >>> step_values((3, 5, 8), 10, ["8-5=33", "3*3=9"])
        [0.0, 0.0]
    """
    values: list[float] = []
    for step in steps:
        after = _left_after(left, step, largest)
        if after is None or 0.0 in values:
            values.append(0.0)
            continue
        left = after
        values.append(0.5 if len(left) > 2 else float(target in _one_step_on(left, largest)))
    return values


def _left_after(left: Numbers, step: str, largest: int) -> Numbers | None:
    """Return the numbers behind a step, None where it is no step of those before it."""
    if not (match := _STEP.fullmatch(step)):
        return None
    first, second, value, *rest = read(match[1] + match[3] + match[4])
    is_possible = OPERATORS[match[2]](first, second) == value and 1 <= value <= largest
    # as bags of numbers, so that one that is there once is not taken twice
    is_kept = sorted((first, second, *rest)) == sorted(left)
    return (value, *rest) if is_possible and is_kept else None


def _one_step_on(left: Numbers, largest: int) -> Numbers:
    """Return what two numbers can make, or the one that is left."""
    return left if len(left) == 1 else tuple(made for _, (made,) in moves(left, largest))
