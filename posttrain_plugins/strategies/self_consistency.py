"""`self_consistency`: sample several chains of thought, and let their answers vote.

Paper: Wang et al., 2022 (https://huggingface.co/papers/2203.11171), section 2, unweighted vote.

1. Answers count as one where they are equivalent (`1/2` and `0.5`), not only where they are the same text.
2. Of equal votes the answer seen first wins, so that the result does not change from run to run.
3. Completions without an answer abstain.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from posttrain_plugins.answers import candidates, choose, majority
from posttrain_plugins.types import Completion, Generate, Problem, Result

__all__ = ["SelfConsistency"]


@dataclass
class SelfConsistency:
    """The answer that most of `n` sampled completions give.

    Args:
        n: completions per problem, drawn at the problem's own temperature.

    Example:
        >>> steps = SelfConsistency(n=3)(Problem("2+2=?"))
        >>> next(steps).n
        3
        >>> try:
        ...     steps.send([Completion("answer is 5"), Completion("answer is 4"), Completion("answer is 4.0")])
        ... except StopIteration as stop:
        ...     print(stop.value.answer)
        4
    """

    n: int = 8

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        completions = yield Generate(problem.prompt, n=self.n, params=problem.params)
        voters = candidates(completions)
        return choose(voters, majority([voter.answer for voter in voters]))
