"""What 1, 2, 4 ... n completions would have given, all from one log of n: pass@k, maj@k, weighted@k and best@k.

Papers: Chen et al., 2021 (https://huggingface.co/papers/2107.03374), equation 1, for pass@k; Snell et al., 2024
(https://huggingface.co/papers/2408.03314), for accuracy against compute; Wang et al., 2022
(https://huggingface.co/papers/2203.11171), for the vote.

1. Each figure is the mean over the subsets of k of a problem's n completions, in the order in which they were drawn:
   unbiased, and at k = n what the strategy itself gives. pass@k and best@k are exact; so are maj@k and weighted@k where
   there are no more than `SUBSETS` subsets, else they are the mean over so many, drawn with a seed.
2. Which answers are equivalent, and whether a verifier gives logits, is decided once among all n.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeAlias

from posttrain_plugins.evaluation.figures import pass_at_k
from posttrain_plugins.text.answers import canonical, equivalent

__all__ = ["RIGHT", "Draws", "classes", "curves", "powers"]

RIGHT = 0.5  # a completion with this score or more passes, for pass@k
SUBSETS = 200

Curve: TypeAlias = dict[int, list[float]]
"""k -> a figure for each of P problems; NaN where it cannot be told."""


@dataclass(frozen=True)
class Draws:
    """The n completions of one problem, in the order in which they were drawn.

    Args:
        metric: n scores of the metric; None where it cannot judge.
        answers: n extracted answers; None abstains.
        verifiers: name -> n scores; None where it cannot judge, and for a completion that failed.
        missing: how many of the n failed; they stand at the end, without a score and an answer.
    """

    metric: Sequence[float | None]
    answers: Sequence[str | None]
    verifiers: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    missing: int = 0


def powers(n: int) -> list[int]:
    """Return 1, 2, 4 ... and n itself.

    Example:
        >>> powers(8), powers(6)
        ([1, 2, 4, 8], [1, 2, 4, 6])
    """
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | ({n} if n else set()))


def curves(problems: Sequence[Draws], n: int, seed: int = 0) -> dict[str, Curve]:
    """Return all curves.

    Args:
        problems: P problems with n draws each.
        n: how many.
        seed: of the subsets.

    Returns:
        `pass`, `maj`, and for each verifier `weighted/NAME` and `best/NAME`, which are the metric, and `proxy/NAME`,
        what the verifier itself thinks of its best.
    """
    voters = [_Voter(draws) for draws in problems]
    names = list(problems[0].verifiers) if problems else []
    kinds = ["pass", "maj", *(f"{kind}/{name}" for name in names for kind in ("weighted", "best", "proxy"))]
    found: dict[str, Curve] = {kind: {} for kind in kinds}
    for k in powers(n):
        # One choice of subsets for all problems and both votes: curves then differ by the vote, not by the draw.
        if math.comb(n, k) <= SUBSETS:
            subsets = list(combinations(range(n), k))
        else:
            rng = random.Random(f"{seed}:{n}:{k}")
            subsets = [tuple(sorted(rng.sample(range(n), k))) for _ in range(SUBSETS)]
        # a completion that cannot be judged does not pass: it is one of those that were drawn; one that failed is none
        passing = [sum(score is not None and score >= RIGHT for score in draws.metric) for draws in problems]
        counts = [len(draws.metric) - draws.missing for draws in problems]
        found["pass"][k] = [
            pass_at_k(count, right, k) if count >= k else math.nan for count, right in zip(counts, passing, strict=True)
        ]
        found["maj"][k] = [voter.vote(subsets) for voter in voters]
        for name in names:
            found[f"weighted/{name}"][k] = [voter.vote(subsets, name) for voter in voters]
            found[f"best/{name}"][k] = [_best(draws.metric, draws.verifiers[name], k) for draws in problems]
            found[f"proxy/{name}"][k] = [_best(draws.verifiers[name], draws.verifiers[name], k) for draws in problems]
    return found


def classes(answers: Sequence[str | None]) -> list[int | None]:
    """Return a number for each answer, the same for equivalent ones; None abstains.

    Example:
        >>> classes(["1/2", None, "7", "0.5"])
        [0, None, 1, 0]
    """
    numbers: dict[str, int] = {}  # canonical form -> class; a class goes by the form seen first
    forms = [None if answer is None else canonical(answer) for answer in answers]
    for form in forms:
        if form is not None and form not in numbers:
            # equivalence is decided by computing, which costs far more than a look at the forms that are known
            same = next((number for other, number in numbers.items() if equivalent(other, form)), None)
            numbers[form] = len(set(numbers.values())) if same is None else same
    return [None if form is None else numbers[form] for form in forms]


def _best(metric: Sequence[float | None], scores: Sequence[float | None], k: int) -> float:
    """Return the metric of the completion that the verifier likes best among k, on average over all subsets.

    The one of rank i is chosen in C(n-1-i, k-1) of C(n, k) subsets; of equal ones the first drawn counts.
    """
    n = len(scores)
    ranked = sorted(range(n), key=lambda i: _rank(scores[i]), reverse=True)  # stable: equal ones stay in order
    weights = [math.comb(n - 1 - rank, k - 1) / math.comb(n, k) for rank in range(n)]
    # where the metric cannot judge the chosen one, the mean is over the other subsets: None is not 0.0
    pairs = [(weight, metric[i]) for weight, i in zip(weights, ranked, strict=True)]
    judged = [(weight, value) for weight, value in pairs if value is not None]
    total = sum(weight for weight, _ in judged)
    return sum(weight * value for weight, value in judged) / total if total else math.nan


def _rank(score: float | None) -> float:
    """Order scores so that a completion which the verifier cannot judge comes last."""
    return -math.inf if score is None else score


class _Voter:
    """The votes of one problem's completions."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        # classes and weights once among all n and not in each subset: a subset's vote must not hang on which forms and
        # which scores happen to be in it
        self.classes = classes(draws.answers)
        self.weights: dict[str, list[float | None]] = {}
        for name, scores in draws.verifiers.items():
            # scores of which one is below zero are taken for logits and go through a sigmoid, as in `best_of_n`
            is_logit = any(score is not None and score < 0 for score in scores)
            self.weights[name] = [s if s is None or not is_logit else (1 + math.tanh(s / 2)) / 2 for s in scores]

    def vote(self, subsets: Sequence[tuple[int, ...]], verifier: str | None = None) -> float:
        """Return the metric of the completion that stands for the vote's winner, on average over the subsets."""
        values = [self.draws.metric[self._winner(subset, verifier)] for subset in subsets]
        judged = [value for value in values if value is not None]
        return sum(judged) / len(judged) if judged else math.nan

    def _winner(self, subset: tuple[int, ...], verifier: str | None) -> int:
        """Choose as `self_consistency` and `best_of_n(weighted=True)` do: of equal classes the one seen first."""
        votes: dict[int, float] = {}
        first: dict[int, int] = {}
        for i in subset:
            number = self.classes[i]
            weight = 1.0 if verifier is None else self.weights[verifier][i]
            if number is not None and weight is not None:
                votes[number] = votes.get(number, 0.0) + weight
                first.setdefault(number, i)
        if votes:
            return first[max(votes, key=votes.__getitem__)]  # `max` keeps the first of equals
        # Nobody votes: the verifier's favourite, or the first drawn, as the strategies answer where no answer is read.
        if verifier is None:
            return subset[0]
        scores = self.draws.verifiers[verifier]
        return max(subset, key=lambda i: _rank(scores[i]))
