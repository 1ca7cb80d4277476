"""`best_of_n`: sample several completions and keep the one that a scorer likes best, or let the scores vote.

Papers: Stiennon et al., 2020 (https://huggingface.co/papers/2009.01325), best of N by a reward model; Cobbe et al.,
2021 (https://huggingface.co/papers/2110.14168), by a verifier, and with a vote among the highest ranked.

1. The weighted vote sums over all completions, not over the highest ranked ones.
2. Scores of which one is below zero are taken for logits and go through a sigmoid before they vote.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_plugins.answers import candidates, choose, majority
from posttrain_plugins.types import Candidate, Generate, Problem, Result, RewardRef, Score

__all__ = ["BestOfN"]


@dataclass
class BestOfN:
    """The completion with the best score among `n`; one that the scorer cannot judge never wins over one that it can.

    Args:
        scorer: a reward: a rule, a reward model, a judge.
        n: completions per problem, drawn at the problem's own temperature.
        weighted: answer with the class of equivalent answers whose scores have the largest sum.

    Example:
        >>> steps = BestOfN(scorer="rm", n=2)(Problem("2+2=?"))
        >>> next(steps).n
        2
    """

    scorer: RewardRef
    n: int = 8
    weighted: bool = False

    def __call__(self, problem: Problem) -> Generator[Generate | Score, Any, Result]:
        completions = yield Generate(problem.prompt, n=self.n, params=problem.params)
        among = candidates(completions)
        if not among:
            return choose(among, None)
        scores = yield Score(problem.prompt, tuple(candidate.text for candidate in among), self.scorer)
        for candidate, score in zip(among, scores, strict=True):
            candidate.score = score
        voted = _vote(among) if self.weighted else None
        return choose(among, _best(among) if voted is None else voted)


def _best(among: Sequence[Candidate]) -> int:
    scores = [-math.inf if candidate.score is None else candidate.score for candidate in among]
    return scores.index(max(scores))


def _vote(among: Sequence[Candidate]) -> int | None:
    """The first member of the class of answers with the largest sum; the unjudged do not vote."""
    answers = [None if candidate.score is None else candidate.answer for candidate in among]
    return majority(answers, _weights([candidate.score or 0.0 for candidate in among]))


def _weights(scores: Sequence[float]) -> list[float]:
    is_logit = any(score < 0 for score in scores)
    return [(1 + math.tanh(score / 2)) / 2 if is_logit else score for score in scores]  # tanh: the sigmoid, no overflow
