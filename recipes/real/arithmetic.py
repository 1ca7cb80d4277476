"""Arithmetic in the head and with a calculator: problems for a small chat model, worked steps, and traces of tool use.

Problems are split three ways by a hash of their numbers, so that none of `train` comes up again in `development` or
`exam`, whatever seed and size are asked for. No paper: the tasks are ours.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.tools.calculator import calculator

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "development", "exam"]
Row = dict[str, Any]


@dataclass
class Sums:
    """Make sums: problems, or demonstrations of the answer alone or of every step.

    Args:
        split: `train`, `development` (20 % of all problems) or `exam` (20 %).
        part: `problems` have `prompt` and `solution`; `answers` have `prompt` and a `completion` that is the answer;
            in `steps` the completion adds one number at a time. Of one seed all parts have the same problems.
        size: number of rows, all distinct.
        seed: what is drawn.
        terms: how many numbers are added.
        smallest: of the numbers.
        largest: of the numbers.

    Raises:
        InputError: a size below 1, fewer than two numbers, or none between the smallest and the largest.

    Example:
        >>> Sums("train", "steps", size=1, terms=3)()[0]["completion"][0]["content"]
        '10+54=64, 64+99=163'
    """

    split: Split
    part: Literal["problems", "answers", "steps"] = "problems"
    size: int = 1000
    seed: int = 0
    terms: int = 4
    smallest: int = 10
    largest: int = 99

    example_params: ClassVar[Row] = {"split": "train", "size": 8}

    def __post_init__(self) -> None:
        if self.size < 1 or self.terms < 2 or self.smallest > self.largest:
            found = f"size {self.size}, terms {self.terms}, numbers from {self.smallest} to {self.largest}"
            raise InputError(f"sums cannot use {found}", hint="size: 1, terms: 2, smallest: 10, largest: 99")

    @property
    def columns(self) -> tuple[str, str]:
        """The names of the columns, known without making the data."""
        return ("prompt", "solution" if self.part == "problems" else "completion")

    def __call__(self) -> datasets.Dataset:
        """Make the rows."""
        import datasets

        rng = random.Random(f"sums/{self.split}/{self.seed}/{self.terms}")
        draw = partial(rng.randint, self.smallest, self.largest)
        drawn = distinct(lambda: tuple(draw() for _ in range(self.terms)), self.split)
        return datasets.Dataset.from_list([self._row(next(drawn)) for _ in range(self.size)])

    def _row(self, terms: Sequence[int]) -> Row:
        prompt = [message("system", "Add the numbers."), message("user", " + ".join(map(str, terms)))]
        if self.part == "problems":
            return {"prompt": prompt, "solution": str(sum(terms))}
        totals = [sum(terms[: i + 1]) for i in range(len(terms))]
        steps = [f"{totals[i]}+{terms[i + 1]}={totals[i + 1]}" for i in range(len(terms) - 1)]
        written = str(totals[-1]) if self.part == "answers" else ", ".join(steps)
        return {"prompt": prompt, "completion": [message("assistant", written)]}


# What a shop's questions ask: the words, and the calculation that answers them.
QUESTIONS = (
    ("A shop has {a} boxes with {b} {things} each, and {c} loose {things}. How many {things}?", "{a}*{b}+{c}"),
    ("A shop had {a} boxes with {b} {things} each, and sold {c} {things}. How many are left?", "{a}*{b}-{c}"),
    ("{a} people bring {b} {things} each, and {c} people bring {d} each. How many {things}?", "{a}*{b}+{c}*{d}"),
    ("There were {c} {things}. Then {a} people took {b} each. How many {things} are left?", "{c}-{a}*{b}"),
)
THINGS = ("pens", "cups", "nails", "apples", "books", "coins", "cards", "stones")
INSTRUCTIONS = "$tools\nFinish[answer]"


@dataclass
class Shop:
    """Make word problems whose arithmetic is beyond a small model's head, and traces that use tool `calculator`.

    Args:
        split: `train`, `development` (20 % of all problems) or `exam` (20 %).
        part: `problems` have `prompt` and `solution`; `answers` have `prompt` and a `completion` that is the answer;
            `traces` have a row for each turn of strategy `react`, which calls the tool and then finishes.
        size: number of problems, all distinct; `traces` have two rows for each.
        seed: what is drawn.

    Raises:
        InputError: a size below 1.
    """

    split: Split
    part: Literal["problems", "answers", "traces"] = "problems"
    size: int = 1000
    seed: int = 0

    example_params: ClassVar[Row] = {"split": "train", "size": 8}

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"shop cannot use size {self.size}", hint="size: 1")

    @property
    def columns(self) -> tuple[str, str]:
        """The names of the columns, known without making the data."""
        return ("prompt", "solution" if self.part == "problems" else "completion")

    def __call__(self) -> datasets.Dataset:
        """Make the rows."""
        import datasets

        rng = random.Random(f"shop/{self.split}/{self.seed}")
        drawn = distinct(lambda: self._draw(rng), self.split)
        rows = [row for _ in range(self.size) for row in self._rows(*next(drawn))]
        return datasets.Dataset.from_list(rows)

    def _draw(self, rng: random.Random) -> tuple[str, str]:
        words, calculation = rng.choice(QUESTIONS)
        a, b, d = rng.randint(12, 98), rng.randint(112, 989), rng.randint(112, 989)
        c = rng.randint(a * b, 2 * a * b) if calculation.startswith("{c}-") else rng.randint(12, 98)
        numbers = {"a": a, "b": b, "c": c, "d": d}
        return words.format(things=rng.choice(THINGS), **numbers), calculation.format(**numbers)

    def _rows(self, question: str, calculation: str) -> Iterator[Row]:
        prompt = [message("system", "Answer only."), message("user", question)]
        solution = calculator(calculation)
        if self.part == "problems":
            yield {"prompt": prompt, "solution": solution}
        elif self.part == "answers":
            yield {"prompt": prompt, "completion": [message("assistant", solution)]}
        else:
            yield from react_rows(prompt, [f"Action: calculator[{calculation}]", f"Action: Finish[{solution}]"])


def react_rows(prompt: Sequence[Mapping[str, str]], turns: Sequence[str]) -> Iterator[Row]:
    """Yield what strategy `react` asks in each of its turns, with what is to be written there.

    The strategy itself is driven, so that the model is trained on the very prompts that it is asked with later.
    """
    from posttrain_plugins.engine.tools import schema_of, use
    from posttrain_plugins.strategies.react import ReAct
    from posttrain_plugins.types import Completion, Generate, Problem

    problem = Problem(list(prompt), tools=(schema_of("calculator", calculator),))
    steps = ReAct(instructions=INSTRUCTIONS)(problem)
    request = next(steps)
    for turn in turns:
        assert isinstance(request, Generate)
        yield {"prompt": request.prompt, "completion": [message("assistant", turn)]}
        try:
            request = steps.send([Completion(turn)])
            if isinstance(request, list):  # calls
                request = steps.send([use({"calculator": calculator}, call) for call in request])
        except StopIteration:
            return


# --- Shared ----------------------------------------------------------------------------------------------------------


def distinct(draw: Callable[[], tuple[Any, ...]], split: Split) -> Iterator[tuple[Any, ...]]:
    """Yield what is drawn, each once, of one split."""
    seen: set[tuple[Any, ...]] = set()
    while True:
        found = draw()
        if found not in seen and split_of(found) == split:
            seen.add(found)
            yield found


def split_of(problem: tuple[Any, ...]) -> Split:
    """Return the split of a problem: one in five is `development`, one in five `exam`; the order does not count."""
    part = zlib.crc32(" ".join(sorted(map(str, problem))).encode()) % 10
    return "exam" if part < 2 else "development" if part < 4 else "train"


def message(role: str, content: str) -> dict[str, str]:
    """Return a message of a conversation."""
    return {"role": role, "content": content}
