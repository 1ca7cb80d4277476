"""`digit_chain`: the tiny world as a data set of problems, of documents to pretrain on, or of demonstrations.

| part             | columns              | for                                           |
|------------------|----------------------|-----------------------------------------------|
| `problems`       | `prompt`, `solution` | GRPO, RLOO, PPO, `sample`, `evaluate`         |
| `corpus`         | `text`               | the base model: solved problems, marked homework |
| `demonstrations` | `prompt`, `completion` | SFT                                         |

Corpus and demonstrations are imperfect on purpose: with clean ones SFT alone solves the task and nothing is left for
RL. An expression belongs to `test` by a hash of itself, so train and test never overlap, whatever seed and size; within
one data set every problem is distinct. No paper: the task is ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.tiny_world.task import (
    Author,
    evaluate,
    format_chat,
    format_raw,
    is_held_out,
    make_expression,
    mark_homework,
    solve,
)

if TYPE_CHECKING:
    import datasets

__all__ = ["DigitChain"]

_COLUMNS = {"problems": ("prompt", "solution"), "corpus": ("text",), "demonstrations": ("prompt", "completion")}
_MAX_REFUSED = 10_000  # draws in a row that give no new problem: there are no more
_DOCUMENT_MARK = "<eos>"


@dataclass
class DigitChain:
    r"""Generate one part of the tiny world.

    Args:
        part: `problems`, `corpus` or `demonstrations`.
        split: `train` or `test`; no expression is in both.
        size: number of rows.
        seed: what is drawn; the parts of one seed are drawn independently of each other.
        min_operators: fewest operators of a problem.
        max_operators: most operators of a problem.
        layout: of problems only. `chat` gives one user message, `raw` the base model's `<eos>EXPRESSION\n`.
        sloppy: share of authors with a wrong rule for the distance (corpus 0.55, demonstrations 0.35 by default).
        slips: share of steps that are slips (corpus 0.08, demonstrations 0.03 by default).
        marked: share of the corpus that is marked homework.
        marked_sloppy: share of the homework's authors with the wrong rule; the others only slip.
        marked_slips: share of slips in the homework of those others.

    Raises:
        InputError: for a value that cannot be used, or more problems asked for than there are.

    Example:
        >>> DigitChain(size=1, min_operators=2, max_operators=2)()[0]
        {'prompt': [{'role': 'user', 'content': '6>4<6'}], 'solution': '6'}
        >>> DigitChain(part="corpus", size=1).columns
        ('text',)
    """

    example_params: ClassVar[dict[str, Any]] = {"size": 32}

    part: Literal["problems", "corpus", "demonstrations"] = "problems"
    split: Literal["train", "test"] = "train"
    size: int = 1000
    seed: int = 0
    min_operators: int = 4
    max_operators: int = 6
    layout: Literal["chat", "raw"] = "chat"
    sloppy: float | None = None
    slips: float | None = None
    marked: float = 0.4
    marked_sloppy: float = 0.4
    marked_slips: float = 0.3

    def __post_init__(self) -> None:
        self._require("part", self.part in _COLUMNS, f"one of {', '.join(_COLUMNS)}")
        self._require("split", self.split in ("train", "test"), "train or test")
        self._require("layout", self.layout in ("chat", "raw"), "chat or raw")
        self._require("size", self.size >= 1, "at least 1")
        self._require("min_operators", self.min_operators >= 1, "at least 1")
        self._require("max_operators", self.max_operators >= self.min_operators, "at least min_operators")
        for name in ("sloppy", "slips", "marked", "marked_sloppy", "marked_slips"):
            share = getattr(self, name)
            self._require(name, share is None or 0.0 <= share <= 1.0, "a share in [0, 1]")

    # As a property, so that a recipe's check knows them from `part` without making any row.
    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, known without making the data."""
        return _COLUMNS[self.part]

    def __call__(self) -> datasets.Dataset:
        """Make the rows.

        Returns:
            `size` rows of `columns`.
        """
        import datasets

        # A generator for each part and split: what one of them draws does not move the others.
        rng = random.Random(f"digit_chain/{self.part}/{self.split}/{self.seed}")
        write = {"problems": self._problem, "corpus": self._document, "demonstrations": self._demonstration}[self.part]
        return datasets.Dataset.from_list([write(expression, rng) for expression in self._expressions(rng)])

    def _expressions(self, rng: random.Random) -> Iterator[str]:
        # By rejection, not from a list of all problems: there are 10 * 30**6 of six operators alone.
        seen: set[str] = set()
        refused = 0
        while len(seen) < self.size:
            expression = make_expression(rng, self.min_operators, self.max_operators)
            if expression in seen or is_held_out(expression) != (self.split == "test"):
                refused += 1
                self._require("size", refused < _MAX_REFUSED, f"at most about {len(seen)} with so few operators")
                continue
            seen.add(expression)
            refused = 0
            yield expression

    # The writers of a row. They share the generator with the expressions, so each of them draws after its expression.

    def _problem(self, expression: str, rng: random.Random) -> dict[str, Any]:
        prompt = f"{_DOCUMENT_MARK}{expression}\n" if self.layout == "raw" else _message("user", expression)
        return {"prompt": prompt, "solution": str(evaluate(expression))}

    def _document(self, expression: str, rng: random.Random) -> dict[str, Any]:
        if rng.random() < self.marked:
            # Marked homework is where the base model's skill to check comes from (`recipes/rlaif.yaml` uses it): its
            # careful authors slip far more often than those of solved problems, so that `n` is common enough.
            is_sloppy = rng.random() < self.marked_sloppy
            author = Author(is_sloppy, 0.0 if is_sloppy else self.marked_slips)
            text = mark_homework(expression, solve(expression, rng, author))
        else:
            text = f"{expression}\n{format_raw(solve(expression, rng, self._author(rng, 0.55, 0.08)))}"
        # On both sides: the base model learns where a document begins, which is how it is asked, and where it ends.
        return {"text": f"{_DOCUMENT_MARK}{text}{_DOCUMENT_MARK}"}

    def _demonstration(self, expression: str, rng: random.Random) -> dict[str, Any]:
        steps = solve(expression, rng, self._author(rng, 0.35, 0.03))
        return {"prompt": _message("user", expression), "completion": _message("assistant", format_chat(steps))}

    def _author(self, rng: random.Random, sloppy: float, slips: float) -> Author:
        sloppy = sloppy if self.sloppy is None else self.sloppy
        return Author(rng.random() < sloppy, slips if self.slips is None else self.slips)

    def _require(self, name: str, is_met: bool, expected: str) -> None:
        if not is_met:
            message = f"digit_chain cannot use {name}: {getattr(self, name)!r}, expected {expected}"
            raise InputError(message, hint=f"change {name}")


def _message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]
