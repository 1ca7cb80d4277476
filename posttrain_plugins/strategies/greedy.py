"""`greedy`: the most likely token at every step, once. No paper; the baseline of every other strategy."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from posttrain_plugins.text.answers import candidates, choose
from posttrain_plugins.types import Completion, Generate, Problem, Result

__all__ = ["Greedy"]


@dataclass
class Greedy:
    """Draw one completion at temperature 0.

    Example:
        >>> steps = Greedy()(Problem("2+2=?"))
        >>> next(steps).params.temperature
        0.0
    """

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        completions = yield Generate(problem.prompt, params=replace(problem.params, temperature=0.0))
        return choose(candidates(completions), 0)
