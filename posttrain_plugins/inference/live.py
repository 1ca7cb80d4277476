"""One problem while a strategy is at work on it: the generator, what it waits for, what it has spent and found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain_plugins.answers import choose, majority
from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.types import (
    Budget,
    CallTool,
    Candidate,
    Generate,
    Problem,
    Request,
    Result,
    Score,
    ScoreSteps,
    Strategy,
    Usage,
)

__all__ = ["Live", "Meter"]

_INFINITY = float("inf")


@dataclass
class Meter:
    """What was spent of one budget, fresh or from the log."""

    limit: Budget
    tokens: int = 0
    completions: int = 0
    calls: int = 0
    started: float = field(default_factory=time.monotonic)

    def refuses(self, request: Request) -> str | None:
        """The limit that forbids this request, or None; `completions` forbids only drawing more of them."""
        spent = {"tokens": self.tokens, "calls": self.calls, "seconds": time.monotonic() - self.started}
        if isinstance(request, Generate):
            spent["completions"] = self.completions
        return next((name for name, used in spent.items() if used >= self._limit(name)), None)

    def room(self) -> float:
        """How many completions may still be drawn."""
        return self._limit("completions") - self.completions

    def is_late(self) -> bool:
        return time.monotonic() - self.started >= self._limit("seconds")

    def _limit(self, name: str) -> float:
        limit = getattr(self.limit, name)
        return _INFINITY if limit is None else float(limit)


class Live:
    """A strategy at work on one problem.

    `pending` is what it asks for, `responses` what it will be sent, `cut_by` the limit that some of `pending` ran into;
    `result` is None until it is done.
    """

    def __init__(self, strategy: Strategy, problem: Problem, columns: Mapping[str, Any], meter: Meter) -> None:
        self.problem = problem
        self.columns = columns
        self.meter = meter
        self.draws: Counter[str] = Counter()  # request -> how often it was made
        self.usage: dict[str, Usage] = {}
        self.found: list[Candidate] = []
        self.pending: list[Request] = []
        self.responses: list[Any] = []
        self.cut_by: str | None = None
        self.result: Result | None = None
        self._is_list = False
        self._steps: Generator[Request | list[Request], Any, Result]
        self._advance(lambda: self._start(strategy))

    def resume(self) -> None:
        """Hand over the responses, or the news that the budget is spent."""
        if self.cut_by is not None:
            self._stop(self.cut_by)
        else:
            response = self.responses if self._is_list else self.responses[0]
            self._advance(lambda: self._steps.send(response))

    def charge(self, role: str, usage: Usage) -> None:
        self.usage[role] = self.usage.get(role, Usage()) + usage

    def note_scores(self, scores: Mapping[str, float | None]) -> None:
        for candidate in self.found:
            candidate.score = scores.get(candidate.text, candidate.score)

    def _start(self, strategy: Strategy) -> Request | list[Request]:
        self._steps = strategy(self.problem)
        return next(self._steps)

    def _stop(self, limit: str) -> None:
        self._advance(lambda: self._steps.throw(BudgetExhausted(f"the budget is spent: {limit}")))
        if self.result is None:  # it asks for more
            with suppress(Exception):
                self._steps.close()
            self.result = self._best_so_far()
        self.result.stopped_by = limit

    def _advance(self, step: Callable[[], Any]) -> None:
        """The plugin boundary: whatever a strategy does here, the other problems go on."""
        try:
            self._take(step())
        except StopIteration as stop:
            self._finish(stop.value)
        except BudgetExhausted:
            self.result = self._best_so_far()
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")

    def _take(self, yielded: Any) -> None:
        self._is_list = isinstance(yielded, list)
        self.pending = yielded if self._is_list else [yielded]
        self.responses = [None] * len(self.pending)
        for request in self.pending:
            if not isinstance(request, Generate | Score | ScoreSteps | CallTool):
                raise TypeError(f"the strategy yielded {request!r}, expected a request or a list of requests")

    def _finish(self, value: Any) -> None:
        if isinstance(value, Result):
            self.result = replace(value, usage=self.usage)
        else:
            self._fail(f"TypeError: the strategy returned {value!r}, expected a Result")

    def _fail(self, error: str) -> None:
        self.result = Result(answer=None, text="", candidates=self.found, usage=self.usage, error=error)

    def _best_so_far(self) -> Result:
        """Of the finished candidates the one with the best score, else with the majority's answer, else the last."""
        scores = [-_INFINITY if candidate.score is None else candidate.score for candidate in self.found]
        best = majority([candidate.answer for candidate in self.found])
        if any(candidate.score is not None for candidate in self.found):
            best = scores.index(max(scores))
        last = len(self.found) - 1
        return replace(choose(self.found, last if best is None else best), usage=self.usage)
