"""`dvts`: diverse verifier tree search, several small trees that never share a beam.

Source: Beeching, Tunstall and Rush, 2024 (https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute):
N/M independent subtrees; in each, M steps are drawn and the one that the process reward model likes best is kept. Where
one beam search would fill all its beams with the offspring of one early step, each subtree keeps its own.

1. The leaves of a subtree are what its last expansion finished; unfinished siblings have no vote.
2. The last step allowed runs to the end, so that every subtree can answer.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.search import (
    Aggregate,
    Growth,
    Path,
    Select,
    best_first,
    check_fields,
    flat,
    judged,
    refuse,
    settle,
    until_spent,
)
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Request, Result, RewardRef

__all__ = ["DVTS"]


@dataclass
class DVTS:
    """In each of `n / beam_width` subtrees, draw `beam_width` steps and keep the best; the leaves answer together.

    Args:
        scorer: a reward that scores steps: a process reward model, a checker.
        n: leaves of all subtrees.
        beam_width: steps drawn in each subtree, of which one is kept. It divides `n`.
        max_steps: steps of a path at most.
        separator: ends a step.
        aggregate: how step scores become one; `whole` scores the text as it stands.
        select: how the answer is chosen from the leaves.

    Raises:
        InputError: for a field that cannot be used.

    Example:
        >>> wave = next(DVTS(scorer="prm", n=8, beam_width=4)(Problem("3|7>2")))
        >>> [request.n for request in wave]
        [4, 4]
    """

    example_params: ClassVar[dict[str, Any]] = {"scorer": "score"}

    scorer: RewardRef
    n: int = 8
    beam_width: int = 4
    max_steps: int = 40
    separator: str = SEPARATOR
    aggregate: Aggregate = "last"
    select: Select = "weighted_vote"

    def __post_init__(self) -> None:
        check_fields("dvts", self, "n", "beam_width", "max_steps")
        if self.n % self.beam_width:
            refuse("dvts", "beam_width", self.beam_width, f"a divisor of n ({self.n})")

    def __call__(self, problem: Problem) -> Generator[list[Request], Any, Result]:
        found: list[Path] = []
        with until_spent(found):
            found = yield from self._search(Growth(problem, self.max_steps, self.separator), found)
        return settle(found, self.select)

    def _search(self, growth: Growth, found: list[Path]) -> Generator[list[Request], Any, list[Path]]:
        """The leaves; `found` is filled with every path on the way."""
        trees = [[Path()] for _ in range(self.n // self.beam_width)]  # the newest siblings of each, the best first
        while live := [i for i, siblings in enumerate(trees) if siblings[0].ended is None]:
            grown = yield from growth.grow([trees[i][0] for i in live], self.beam_width)
            scored = yield from judged(growth.problem, flat(grown), self.scorer, self.aggregate, self.separator)
            found += scored
            offspring = iter(scored)
            for i, children in zip(live, grown, strict=True):
                trees[i] = best_first(next(offspring) for _ in children)
            trees = [siblings for siblings in trees if siblings]  # a subtree whose samples all failed is dead
        leaves = [leaf for leaf in flat(trees) if leaf.ended]
        return leaves or found
