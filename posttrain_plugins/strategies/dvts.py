"""`dvts`: diverse verifier tree search, several small trees that never share a beam.

Source: Beeching, Tunstall and Rush, 2024 (https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute):
N/M independent subtrees; in each, M steps are drawn and the one that the process reward model likes best is kept. Where
one beam search would fill all its beams with the offspring of one early step, each subtree keeps its own.

1. The leaves of a subtree are what its last expansion finished; unfinished siblings have no vote.
2. The last step allowed runs to the end, so that every subtree can answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins import search
from posttrain_plugins.search import AnswerRule, Expander, PartialCompletion, PathAggregate, Waves
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Result, RewardRef

__all__ = ["DVTS"]


@dataclass
class DVTS:
    """Draw `beam_width` steps in each of `n / beam_width` subtrees and keep the best; the leaves answer together.

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
    aggregate: PathAggregate = "last"
    select: AnswerRule = "weighted_vote"

    def __post_init__(self) -> None:
        search.check_fields("dvts", self, "n", "beam_width", "max_steps")

    def __call__(self, problem: Problem) -> Waves[Result]:
        found: list[PartialCompletion] = []
        with search.stop_when_spent(found):
            found = yield from self._search(Expander(problem, self.max_steps, self.separator), found)
        return search.select_answer(found, self.select)

    def _search(self, expander: Expander, found: list[PartialCompletion]) -> Waves[list[PartialCompletion]]:
        """Return the leaves; `found` is filled with every path on the way, for a budget that ends the search."""
        # The source's first step, N/M independent subtrees. Of each the newest siblings are held, the best one first:
        # only that one is expanded, but at the end all M of them are leaves.
        trees = [[PartialCompletion()] for _ in range(self.n // self.beam_width)]  # (n / beam_width, beam_width)
        while live := [i for i, siblings in enumerate(trees) if siblings[0].ended is None]:
            # M steps from the best sibling of each subtree: one wave for all subtrees, one for their scores.
            children = yield from expander.expand([trees[i][0] for i in live], self.beam_width)
            scored = yield from search.judge_paths(
                expander.problem, search.flatten(children), self.scorer, self.aggregate, self.separator
            )
            found += scored
            # The step with the highest score is kept within its own subtree: it never competes with another subtree's,
            # and that is all of the difference to a beam search.
            remaining = iter(scored)
            for i, siblings in zip(live, children, strict=True):
                trees[i] = search.sort_by_score(next(remaining) for _ in siblings)
            trees = [siblings for siblings in trees if siblings]  # a subtree whose samples all failed is dead
        leaves = [leaf for leaf in search.flatten(trees) if leaf.ended]
        return leaves or found
