"""`best_form`: best of N by a rule of its own, so that it needs no scorer. No paper."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from posttrain_haiku.form import share_of_form
from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Generate, Problem, Result


@dataclass
class BestForm:
    """Of `n` completions the one with the best form; of equal ones the first.

    Args:
        n: completions per problem.
    """

    n: int = 4

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"best_form cannot draw {self.n} completions", hint="set n to 1 or more")

    def __call__(self, problem: Problem) -> Generator[Any, Any, Result]:
        """Asks once for `n` completions."""
        among = candidates((yield Generate(problem.prompt, n=self.n, params=problem.params)))
        for candidate in among:
            candidate.score = share_of_form(candidate.text)
        best = max(range(len(among)), key=lambda i: (among[i].score, -i), default=None)
        return choose(among, best)
