"""`prm_beam_search`: beams that grow step by step, and of which a process reward model keeps the best.

Paper: Snell et al., 2024 (https://huggingface.co/papers/2408.03314), section 5.2, beam search and lookahead search:
N beams; the best N/M by the verifier are kept, and each is continued M times.

1. Finished beams leave for a pool before the others are ranked; the search ends when the pool holds `n` or no beam is
   left, and the answer is chosen among all of the pool.
2. Of live beams with equal texts one is kept; its draws go to the others, so that `n` paths grow in every wave.
3. The score that ranks a beam may be the last, smallest or mean step score, or their product; the paper uses the last.
4. The last step allowed runs to the end, so that every beam can answer.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from posttrain_plugins.search import (
    Aggregate,
    Growth,
    Path,
    Select,
    best_first,
    check_fields,
    distinct,
    flat,
    judged,
    refuse,
    settle,
    shares,
    until_spent,
)
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Request, Result, RewardRef

__all__ = ["PRMBeamSearch"]


@dataclass
class PRMBeamSearch:
    """Keep the best `n / beam_width` of `n` beams at each step, continue each `beam_width` times.

    Args:
        scorer: a reward that scores steps: a process reward model, a checker.
        n: beams; the paper's N.
        beam_width: continuations of each beam that is kept; the paper's M. It divides `n`.
        max_steps: steps of a path at most.
        lookahead: steps of a greedy rollout whose score ranks the beam in place of its own; 0 for none.
        separator: ends a step.
        aggregate: how step scores become one; `whole` scores the text as it stands.
        select: how the answer is chosen from the pool.

    Raises:
        InputError: for a field that cannot be used.

    Example:
        >>> wave = next(PRMBeamSearch(scorer="prm", n=4, beam_width=2, separator=";")(Problem("3|7>2")))
        >>> wave[0].n, wave[0].params.stop
        (4, (';',))
    """

    example_params: ClassVar[dict[str, Any]] = {"scorer": "score"}

    scorer: RewardRef
    n: int = 8
    beam_width: int = 4
    max_steps: int = 40
    lookahead: int = 0
    separator: str = SEPARATOR
    aggregate: Aggregate = "last"
    select: Select = "weighted_vote"

    def __post_init__(self) -> None:
        check_fields("prm_beam_search", self, "n", "beam_width", "max_steps")
        if self.n % self.beam_width:
            refuse("prm_beam_search", "beam_width", self.beam_width, f"a divisor of n ({self.n})")
        if self.lookahead < 0:
            refuse("prm_beam_search", "lookahead", self.lookahead, "at least 0")

    def __call__(self, problem: Problem) -> Generator[list[Request], Any, Result]:
        found: list[Path] = []
        with until_spent(found):
            yield from self._search(Growth(problem, self.max_steps, self.separator), found)
        return settle(found, self.select)

    def _search(self, growth: Growth, found: list[Path]) -> Generator[list[Request], Any, None]:
        beams, in_pool = [Path()], 0
        while beams and in_pool < self.n:
            grown = yield from growth.grow(beams, shares(self.n, len(beams)))
            children = yield from self._judged(growth, distinct(flat(grown), are_votes=True))
            found += children
            in_pool += sum(child.ended is not None for child in children)
            live = [child for child in children if child.ended is None]
            beams = best_first(live)[: self.n // self.beam_width]

    def _judged(self, growth: Growth, children: Sequence[Path]) -> Generator[list[Request], Any, list[Path]]:
        """The children with the scores of where they lead to."""
        ahead = yield from self._rolled_out(growth, children)
        scored = yield from judged(growth.problem, ahead, self.scorer, self.aggregate, self.separator)
        return [
            replace(child, score=seen.score, step_scores=seen.step_scores[: child.steps])
            for child, seen in zip(children, scored, strict=True)
        ]

    def _rolled_out(self, growth: Growth, children: Sequence[Path]) -> Generator[list[Request], Any, list[Path]]:
        """Each child, `lookahead` greedy steps further; one whose sample fails stays where it is."""
        ahead = list(children)
        for _ in range(self.lookahead):
            live = [i for i, path in enumerate(ahead) if path.ended is None]
            grown = yield from growth.grow([ahead[i] for i in live], 1, greedy=True)
            for i, next_step in zip(live, grown, strict=True):
                ahead[i : i + 1] = next_step[:1] or ahead[i : i + 1]
        return ahead
