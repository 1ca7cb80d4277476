"""Make problems of the tiny world, and let authors solve and mark them: sloppy ones, careful ones, with slips.

Every function that draws takes the `random.Random` to draw from, so the same seed gives the same text everywhere.
No paper: the task is ours.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

__all__ = [
    "HELD_OUT_BUCKETS",
    "OPERATORS",
    "Author",
    "Step",
    "evaluate",
    "format_chat",
    "format_raw",
    "is_held_out",
    "make_expression",
    "mark_homework",
    "parse_expression",
    "solve",
    "value_of",
]

OPERATORS = "><|"
HELD_OUT_BUCKETS = 16  # one expression in 16 is a test problem, whatever the seed


@dataclass(frozen=True)
class Step:
    """One written step, `left operator right = value`; what is written need not be true."""

    left: int
    operator: str
    right: int
    value: int

    @property
    def is_right(self) -> bool:
        """Return True where the value follows from the two operands as written."""
        return self.value == value_of(self.left, self.operator, self.right)

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.value}"


@dataclass(frozen=True)
class Author:
    """Who writes the steps.

    Args:
        is_sloppy: has a wrong rule for the distance, `a|b` gives the larger of the two.
        slip_rate: share of steps where one of the two operands or a random digit is written instead of the value.
    """

    is_sloppy: bool = False
    slip_rate: float = 0.0

    def write_value(self, left: int, operator: str, right: int, rng: random.Random) -> int:
        """Return the digit that this author writes after `left operator right =`."""
        if rng.random() < self.slip_rate:
            # Mostly an operand, which is often right by chance: a slip that a look at the digits does not show.
            return rng.choice((left, right, rng.randrange(10)))
        # Only the distance is wrong: most steps of a sloppy author are right, and it takes a judge of steps to tell.
        return value_of(left, ">" if self.is_sloppy and operator == "|" else operator, right)


def value_of(left: int, operator: str, right: int) -> int:
    """Return the value of one pair: `>` the larger, `<` the smaller, `|` the distance.

    Example:
        >>> value_of(3, ">", 7), value_of(3, "<", 7), value_of(3, "|", 7)
        (7, 3, 4)
    """
    if operator == ">":
        return max(left, right)
    if operator == "<":
        return min(left, right)
    return abs(left - right)


def parse_expression(expression: str) -> tuple[int, list[tuple[str, int]]]:
    """Split an expression into its first digit and the pairs of operator and digit that follow it.

    Example:
        >>> parse_expression("3|7>2")
        (3, [('|', 7), ('>', 2)])
    """
    pairs = [(expression[i], int(expression[i + 1])) for i in range(1, len(expression) - 1, 2)]
    return int(expression[0]), pairs


def evaluate(expression: str) -> int:
    """Return the value of an expression, read from left to right.

    Example:
        >>> evaluate("3|7>2<9|4")
        0
    """
    value, pairs = parse_expression(expression)
    for operator, digit in pairs:
        value = value_of(value, operator, digit)
    return value


def make_expression(rng: random.Random, min_operators: int = 4, max_operators: int = 6) -> str:
    """Draw an expression; the number of operators is the difficulty.

    Example:
        >>> make_expression(random.Random(0))
        '3<0<8<6<7<9'
    """
    # The order of the draws (length, pairs, first digit) is part of the data: another one gives other rows for a seed.
    pairs = [rng.choice(OPERATORS) + str(rng.randrange(10)) for _ in range(rng.randint(min_operators, max_operators))]
    return str(rng.randrange(10)) + "".join(pairs)


def is_held_out(expression: str) -> bool:
    """Return True for the one expression in 16 that belongs to `test`, whatever the seed, size and machine."""
    # a cryptographic hash, not `hash`, which differs from process to process, and not a share of a drawn list
    return hashlib.sha256(expression.encode()).digest()[0] % HELD_OUT_BUCKETS == 0


def solve(expression: str, rng: random.Random, author: Author | None = None) -> list[Step]:
    """Write the steps as an author does; after a mistake the author goes on from what is written.

    Args:
        expression: the problem.
        rng: where slips are drawn from.
        author: who writes; by default a careful one, whose every step is right.

    Returns:
        One step per operator.

    Example:
        >>> [str(step) for step in solve("3|7>2", random.Random(0))]
        ['3|7=4', '4>2=4']
        >>> [str(step) for step in solve("3|7>2", random.Random(0), Author(is_sloppy=True))]
        ['3|7=7', '7>2=7']
    """
    author = author or Author()
    left, pairs = parse_expression(expression)
    steps = []
    for operator, right in pairs:
        value = author.write_value(left, operator, right, rng)
        steps.append(Step(left, operator, right, value))
        left = value  # so later steps can be right though the answer is wrong: process and outcome rewards differ
    return steps


def format_chat(steps: list[Step]) -> str:
    """Write a completion as the chat models do: the steps in the think tags, then the answer in its own.

    Example:
        >>> format_chat(solve("3|7>2", random.Random(0)))
        '<think>3|7=4;4>2=4</think><answer>4</answer>'
    """
    return f"<think>{';'.join(map(str, steps))}</think><answer>{steps[-1].value}</answer>"


def format_raw(steps: list[Step]) -> str:
    r"""Write a completion as the base model's documents have it: the steps on one line, the answer on the next.

    Example:
        >>> format_raw(solve("3|7>2", random.Random(0)))
        '3|7=4;4>2=4\n4'
    """
    return f"{';'.join(map(str, steps))}\n{steps[-1].value}"


def mark_homework(expression: str, steps: list[Step]) -> str:
    r"""Mark a solution: `y` or `n` after each step.

    Example:
        >>> mark_homework("3|7>2", solve("3|7>2", random.Random(0), Author(is_sloppy=True)))
        'mark 3|7>2\n3|7=7n;7>2=7y'
    """
    # A mark is about the step as written, not about the answer: what a process reward model is to learn.
    marks = ";".join(f"{step}{'y' if step.is_right else 'n'}" for step in steps)
    return f"mark {expression}\n{marks}"
