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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from posttrain_plugins import search
from posttrain_plugins.search import AnswerRule, Expander, PartialCompletion, PathAggregate, Waves
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Result, RewardRef

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
    aggregate: PathAggregate = "last"
    select: AnswerRule = "weighted_vote"

    def __post_init__(self) -> None:
        search.check_fields("prm_beam_search", self, "n", "beam_width", "max_steps")
        if self.lookahead < 0:
            search.refuse_field("prm_beam_search", "lookahead", self.lookahead, "at least 0")

    def __call__(self, problem: Problem) -> Waves[Result]:
        pool: list[PartialCompletion] = []
        with search.stop_when_spent(pool):
            yield from self._search(Expander(problem, self.max_steps, self.separator), pool)
        return search.select_answer(pool, self.select)

    def _search(self, expander: Expander, pool: list[PartialCompletion]) -> Waves[None]:
        """Fill the pool with every path that was judged; those that have ended are its votes."""
        beams, num_ended = [PartialCompletion()], 0
        while beams and num_ended < self.n:
            # The paper's step 1 is the first pass, N draws from the prompt; afterwards its step 4, M draws from each of
            # the N/M beams. Where fewer beams are left, since equal ones were merged, they share the N draws.
            children = search.flatten((yield from expander.expand(beams, search.split_draws(self.n, len(beams)))))
            # Ended paths are not merged: each one is a vote of its own at the end.
            judged = yield from self._judged(expander, search.deduplicate(children, are_votes=True))  # step 2
            pool += judged
            num_ended += sum(path.ended is not None for path in judged)
            # Step 3, filter for the top N/M. A finished path takes no place among them: there is nothing to expand.
            beams = search.sort_by_score(path for path in judged if path.ended is None)[: self.n // self.beam_width]

    def _judged(self, expander: Expander, children: Sequence[PartialCompletion]) -> Waves[list[PartialCompletion]]:
        """Return the children with the scores of where they lead to."""
        # Lookahead search: k greedy steps from each child, whose end is scored in its place. All children are rolled
        # out in the same k waves; one whose sample fails stays where it is.
        ahead = list(children)
        for _ in range(self.lookahead):
            live = [i for i, path in enumerate(ahead) if path.ended is None]
            next_steps = yield from expander.expand([ahead[i] for i in live], 1, greedy=True)
            for i, drawn in zip(live, next_steps, strict=True):
                ahead[i : i + 1] = drawn[:1] or ahead[i : i + 1]
        scored = yield from search.judge_paths(expander.problem, ahead, self.scorer, self.aggregate, self.separator)
        # The rolled-out steps are thrown away, and their step scores with them: the beam goes on from the child.
        return [
            replace(child, score=end.score, step_scores=end.step_scores[: child.num_steps])
            for child, end in zip(children, scored, strict=True)
        ]
