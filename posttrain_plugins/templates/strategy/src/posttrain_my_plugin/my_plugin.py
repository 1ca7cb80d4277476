"""`my_plugin`: say here how it spends compute, and by which paper."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from posttrain_plugins.answers import candidates, choose, majority
from posttrain_plugins.types import Generate, Problem, Result


@dataclass
class MyPlugin:
    """Takes the answer that most of `n` completions give; of equal votes the one seen first.

    Args:
        n: completions per problem.
    """

    n: int = 4

    def __call__(self, problem: Problem) -> Generator[Any, Any, Result]:
        """Yield requests, be sent their answers, and return a result; the reference answer is never seen."""
        completions = yield Generate(problem.prompt, n=self.n, params=problem.params)
        among = candidates(completions)  # those that did not fail, with their answers
        return choose(among, majority([candidate.answer for candidate in among]))
