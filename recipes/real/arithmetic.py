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

MAX_REFUSED = 100_000
"""Draws in a row of what is of another split, or was there before, after which no more is looked for."""
Split = Literal["train", "development", "exam"]
Row = dict[str, Any]


@dataclass
class Sums:
    """Make sums: problems, or demonstrations of the answer alone or of every step.

    Args:
        split: `train`, `development` (20 % of all problems) or `exam` (20 %).
        part: `problems` have `prompt` and `solution`; `answers` have `prompt` and a `completion` that is the answer;
            in `steps` the completion adds one number at a time; `revisions` have two rows a problem, what strategy
            `episodic_memory` asks after an attempt with a mistake: which step is wrong, and then the sum again.
            Of one seed all parts have the same problems.
        size: number of problems, all distinct.
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
    part: Literal["problems", "answers", "steps", "revisions"] = "problems"
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
        problems = [next(drawn) for _ in range(self.size)]
        if self.part == "revisions":  # mistakes after the problems, so that these are the same in all parts
            return datasets.Dataset.from_list([row for terms in problems for row in self._revisions(terms, rng)])
        return datasets.Dataset.from_list([self._row(terms) for terms in problems])

    def _revisions(self, terms: Sequence[int], rng: random.Random) -> Iterator[Row]:
        """Yield how an attempt with one wrong step is mended; what follows the step goes on from the wrong total."""
        at, wrong = rng.randrange(1, self.terms), rng.choice((-10, -2, -1, 1, 2, 10))
        mistaken = written_steps(terms, {at: wrong})
        mended = written_steps(terms).split(", ")[at - 1]
        prompt = [message("system", "Add the numbers."), message("user", " + ".join(map(str, terms)))]
        yield from reflection_rows(prompt, mistaken, mended, written_steps(terms))

    def _row(self, terms: Sequence[int]) -> Row:
        prompt = [message("system", "Add the numbers."), message("user", " + ".join(map(str, terms)))]
        if self.part == "problems":
            return {"prompt": prompt, "solution": str(sum(terms))}
        written = str(sum(terms)) if self.part == "answers" else written_steps(terms)
        return {"prompt": prompt, "completion": [message("assistant", written)]}


def written_steps(terms: Sequence[int], mistakes: Mapping[int, int] | None = None) -> str:
    """Return the sum, one number at a time; `mistakes` are added to the totals of their steps, counted from 1.

    Example:
        >>> written_steps([10, 54, 99], {1: 10})
        '10+54=74, 74+99=173'
    """
    steps, total = [], terms[0]
    for i, term in enumerate(terms[1:], start=1):
        found = total + term + (mistakes or {}).get(i, 0)
        steps.append(f"{total}+{term}={found}")
        total = found
    return ", ".join(steps)


REFLECTION = "$question\n$completion\nThis is wrong. Which step, and what is it?"
MEMORY = "$reflections"


def reflection_rows(prompt: Sequence[Mapping[str, str]], attempt: str, reflection: str, again: str) -> Iterator[Row]:
    """Yield what strategy `episodic_memory` asks after a failed attempt: for a reflection, and for another attempt.

    The strategy itself is driven, so that the model is trained on the very prompts that it is asked with later.
    """
    from posttrain_plugins.strategies.episodic_memory import EpisodicMemory
    from posttrain_plugins.types import Completion, Generate, Problem

    strategy = EpisodicMemory(scorer="right", similar=0, reflection_prompt=REFLECTION, memory_prompt=MEMORY)
    steps = strategy(Problem(list(prompt)))
    next(steps)
    steps.send([Completion(attempt)])  # it asks the scorer
    asked: Any = steps.send([0.0])
    for written in (reflection, again):
        assert isinstance(asked, Generate)
        yield {"prompt": asked.prompt, "completion": [message("assistant", written)]}
        if written is reflection:
            asked = steps.send([Completion(reflection)])


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
        in_turn: the kinds of question in turn, in place of a draw: so many rows have each kind as often as the others.

    Raises:
        InputError: a size below 1.
    """

    split: Split
    part: Literal["problems", "answers", "traces"] = "problems"
    size: int = 1000
    seed: int = 0
    in_turn: bool = False

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
        kinds = [(one,) for one in QUESTIONS] if self.in_turn else [QUESTIONS]
        drawn = [distinct(partial(self._draw, rng, of_kind), self.split) for of_kind in kinds]
        rows = [row for i in range(self.size) for row in self._rows(*next(drawn[i % len(drawn)]))]
        return datasets.Dataset.from_list(rows)

    def _draw(self, rng: random.Random, questions: Sequence[tuple[str, str]]) -> tuple[str, str]:
        words, calculation = rng.choice(questions)
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
    """Yield what is drawn, each once, of one split.

    Raises:
        InputError: there is no more of it, by all that many draws say.
    """
    seen: set[tuple[Any, ...]] = set()
    refused = 0
    while refused < MAX_REFUSED:
        found = draw()
        if found in seen or split_of(found) != split:
            refused += 1
            continue
        seen.add(found)
        refused = 0
        yield found
    raise InputError(
        f"size is above the number of problems of split '{split}', expected at most about {len(seen)}",
        hint="take fewer, or more and larger numbers",
    )


def split_of(problem: tuple[Any, ...]) -> Split:
    """Return the split of a problem: one in five is `development`, one in five `exam`; the order does not count."""
    part = zlib.crc32(" ".join(sorted(map(str, problem))).encode()) % 10
    return "exam" if part < 2 else "development" if part < 4 else "train"


def message(role: str, content: str) -> dict[str, str]:
    """Return a message of a conversation."""
    return {"role": role, "content": content}
