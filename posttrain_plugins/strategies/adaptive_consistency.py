"""`adaptive_consistency`: self-consistency that stops drawing as soon as the vote is as good as decided.

Paper: Aggarwal et al., 2023 (https://huggingface.co/papers/2305.11860), section 3, the Beta criterion: of two answers
with v1 and v2 votes, the chance that the first one is the more frequent is 1 - sum_{k<=v2} C(v1+v2+1, k) / 2^(v1+v2+1).

1. Completions come in waves of `step`, four by default: with fewer the paper's criterion cannot be met.
2. Equivalence, ties and completions without an answer are as in `self_consistency`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from math import comb

from posttrain_plugins.errors import InputError
from posttrain_plugins.text.answers import candidates, choose, majority, tally
from posttrain_plugins.types import Candidate, Completion, Generate, Problem, Result

__all__ = ["AdaptiveConsistency", "lead_probability"]


@dataclass
class AdaptiveConsistency:
    """Find the majority's answer from as few completions as make it safe.

    Args:
        n: completions per problem at most, drawn at the problem's own temperature; the paper's 40.
        step: completions per wave.
        tau: how probable the lead of the first answer over the second must be; the paper's 0.95.

    Raises:
        InputError: for a wave of nothing.

    Example:
        >>> steps = AdaptiveConsistency()(Problem("2+2=?"))
        >>> next(steps).n
        4
        >>> try:
        ...     steps.send([Completion("answer is 4")] * 4)
        ... except StopIteration as stop:
        ...     print(stop.value.answer)
        4
    """

    n: int = 40
    step: int = 4
    tau: float = 0.95

    def __post_init__(self) -> None:
        if self.step < 1:
            raise InputError(f"adaptive_consistency cannot draw {self.step} at a time", hint="set step to 1 or more")

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        voters: list[Candidate] = []
        for drawn in range(0, self.n, self.step):
            wave = min(self.step, self.n - drawn)
            voters += candidates((yield Generate(problem.prompt, n=wave, params=problem.params)))
            votes = sorted(tally([voter.answer for voter in voters]).values(), reverse=True)
            # The two most frequent answers decide. The paper's Dirichlet criterion looks at all of them, decides nearly
            # alike, and takes an integral over as many dimensions as there are answers.
            first, second = (int(count) for count in [*votes, 0, 0][:2])
            if lead_probability(first, second) >= self.tau:
                break
        return choose(voters, majority([voter.answer for voter in voters]))


def lead_probability(first: int, second: int) -> float:
    """Return the probability that an answer with `first` votes is more frequent than one with `second`.

    Example:
        >>> lead_probability(4, 0), lead_probability(3, 0)
        (0.96875, 0.9375)
    """
    # P(p > 1/2) of p ~ Beta(v1 + 1, v2 + 1), the posterior of a uniform prior: for whole numbers a sum of binomials
    total = first + second + 1
    return 1 - sum(comb(total, k) for k in range(second + 1)) / float(2**total)
