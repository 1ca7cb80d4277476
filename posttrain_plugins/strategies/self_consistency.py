"""`self_consistency`: sample several chains of thought, and let their answers vote.

Paper: Wang et al., 2022 (https://huggingface.co/papers/2203.11171), section 2: the unweighted vote, and the weighted
one with the normalized probability of equation 1.

1. Answers count as one where they are equivalent (`1/2` and `0.5`), not only where they are the same text.
2. Of equal votes the answer seen first wins, so that the result does not change from run to run.
3. Completions without an answer abstain.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.text.answers import candidates, choose, majority
from posttrain_plugins.types import Completion, Generate, Problem, Result

__all__ = ["SelfConsistency"]


@dataclass
class SelfConsistency:
    """Draw `n` completions and answer as most of them do.

    Args:
        n: completions per problem, drawn at the problem's own temperature.
        weights: `logprob` lets each vote count the completion's probability to the power of one over its length.

    Raises:
        InputError: log-probabilities are to weigh the votes, and the backend gives none.

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
    weights: Literal["none", "logprob"] = "none"

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        is_weighted = self.weights == "logprob"
        params = replace(problem.params, logprobs=True) if is_weighted else problem.params
        completions = yield Generate(problem.prompt, n=self.n, params=params)
        # `candidates` leaves out the same ones, so that weights and voters stay in step
        drawn = [completion for completion in completions if completion.finish_reason != "error"]
        voters = candidates(drawn)
        weights = [_probability(completion.logprobs) for completion in drawn] if is_weighted else None
        return choose(voters, majority([voter.answer for voter in voters], weights))


def _probability(logprobs: Sequence[float] | None) -> float:
    """Return the geometric mean of the tokens' probabilities; 0 where there is no token."""
    if logprobs is None:
        message = "self_consistency cannot weigh the votes: the backend gave no log-probabilities"
        raise InputError(message, hint="set weights: none")
    # equation 1: by the length K, since otherwise long chains of thought would hardly count
    return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else 0.0
