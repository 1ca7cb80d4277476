"""One problem while a strategy is at work on it: the generator, what it waits for, what it has spent and found."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.engine.trace import event_of, prefill_of
from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.text.answers import choose, extract, majority
from posttrain_plugins.types import (
    Budget,
    CallTool,
    Candidate,
    Completion,
    Generate,
    Problem,
    Request,
    Result,
    Score,
    ScoreSteps,
    Strategy,
    Usage,
)

__all__ = ["Ask", "Found", "Live", "Meter"]

_INFINITY = float("inf")
_REQUESTS = (Generate, Score, ScoreSteps, CallTool)


@dataclass(slots=True)
class Meter:
    """What was spent of one budget, fresh or from the log; `is_limited` where the budget has a limit at all."""

    limit: Budget
    tokens: int = 0
    completions: int = 0
    calls: int = 0
    started: float = field(default_factory=time.monotonic)
    is_limited: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_limited = self.limit != Budget()

    def refuses(self, request: Request) -> str | None:
        """The limit that forbids this request, or None; `completions` forbids only drawing more of them."""
        if not self.is_limited:
            return None
        limit = self.limit
        if limit.calls is not None and self.calls >= limit.calls:
            return "calls"
        if limit.completions is not None and isinstance(request, Generate) and self.completions >= limit.completions:
            return "completions"
        return self.is_spent()

    def is_spent(self) -> str | None:
        """The limit, `tokens` or `seconds`, that has been reached while requests were in flight, or None."""
        if not self.is_limited:
            return None
        if self.limit.tokens is not None and self.tokens >= self.limit.tokens:
            return "tokens"
        return "seconds" if self.limit.seconds is not None and time.monotonic() >= self.deadline else None

    def room(self) -> float:
        """How many completions may still be drawn."""
        return _INFINITY if self.limit.completions is None else self.limit.completions - self.completions

    def share(self) -> float | None:
        """How much of the tightest limit is spent, 1 for all; None without limits."""
        if not self.is_limited:
            return None
        seconds = time.monotonic() - self.started
        pairs = (
            (self.tokens, self.limit.tokens),
            (self.completions, self.limit.completions),
            (self.calls, self.limit.calls),
            (seconds, self.limit.seconds),
        )
        return max((spent / max(limit, 1e-9) for spent, limit in pairs if limit is not None), default=None)

    @property
    def deadline(self) -> float:
        """On the monotonic clock."""
        return _INFINITY if self.limit.seconds is None else self.started + self.limit.seconds


@dataclass(eq=False, slots=True)
class Ask:
    """One admitted request.

    Args:
        live: the problem that asks.
        slot: its place in what the strategy yielded.
        request: the request.
        keys: where its answers stand in the log: a completion, a score or a tool's answer each.
        fresh: those of `keys` that are still to be answered, by this request alone.
        known_tokens: what those cost that the log knows.
        landed: completions by key, as they came; failed ones are nowhere else.
        is_begun: whether something of `fresh` was answered.
    """

    live: Live
    slot: int
    request: Any
    keys: list[str]
    fresh: list[str]
    known_tokens: int = 0
    landed: dict[str, Completion] = field(default_factory=dict)
    is_begun: bool = False


class Found:
    """What a problem's completions amount to if the strategy is never heard again.

    Only completions of the policy count that were drawn for the purpose `answer`, or as a `step` of one. A candidate's
    text begins with the prefill. One is unfinished that a stop string ended which is not the problem's own, or a step
    that ran out of tokens; it counts only where nothing is finished.
    """

    __slots__ = ("_drawn", "_problem", "_scores")

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._drawn: list[tuple[Generate, Completion]] = []
        self._scores: dict[str, float | None] = {}

    def add(self, request: Generate, completions: Sequence[Completion]) -> None:
        if request.model == "policy" and request.purpose in ("answer", "step"):
            self._drawn += [(request, one) for one in completions if one.finish_reason != "error"]

    def note_scores(self, request: Score, scores: Sequence[float | None]) -> None:
        self._scores.update(zip(request.completions, scores, strict=True))

    def candidates(self) -> list[Candidate]:
        """The finished ones, else the longest of the others."""
        finished = [self._candidate(*drawn) for drawn in self._drawn if not self._goes_on(*drawn)]
        paths = [] if finished else [self._candidate(*drawn) for drawn in self._drawn]
        return finished or sorted(paths, key=lambda path: -len(path.text))[:1]

    def best(self) -> Result:
        """The candidate with the best score, else with the majority's answer, else the last."""
        among = self.candidates()
        if any(candidate.score is not None for candidate in among):
            scores = [-_INFINITY if candidate.score is None else candidate.score for candidate in among]
            return choose(among, scores.index(max(scores)))
        voted = majority([candidate.answer for candidate in among])
        return choose(among, len(among) - 1 if voted is None else voted)

    def _candidate(self, request: Generate, completion: Completion) -> Candidate:
        text = prefill_of(request.prompt, self._problem.prompt) + completion.text
        score = self._scores.get(text, self._scores.get(completion.text))
        return Candidate(text, extract(text), score, finish_reason=completion.finish_reason)

    def _goes_on(self, request: Generate, completion: Completion) -> bool:
        if completion.finish_reason == "length":
            return request.purpose == "step"
        is_own_stop = completion.stop_reason is None or completion.stop_reason in self._problem.params.stop
        return completion.finish_reason == "tool_calls" or not is_own_stop


class Live:
    """A strategy at work on one problem.

    `pending` is what it asks for, `asks` what of it was admitted, `responses` what it will be sent, `cut_by` the limit
    that some of `pending` ran into; `result` is None until it is done.
    """

    def __init__(self, strategy: Strategy, problem: Problem, columns: Mapping[str, Any], meter: Meter) -> None:
        self.problem = problem
        self.columns = columns
        self.meter = meter
        self.draws: dict[str, int] = {}  # request -> how often it was made
        self.usage: dict[str, Usage] = {}
        self.trace: list[dict[str, Any]] = []
        self.found = Found(problem)
        self.pending: list[Request] = []
        self.asks: list[Ask] = []
        self.responses: list[Any] = []
        self.cut_by: str | None = None
        self.result: Result | None = None
        self._round = 0
        self._is_list = False
        self._steps: Generator[Request | list[Request], Any, Result]
        self._advance(lambda: self._start(strategy))

    def answer(self, ask: Ask, response: Any) -> None:
        """Note down a response; it is handed over with those of the whole round."""
        self.responses[ask.slot] = response
        self.trace.append(event_of(ask.request, response, self._round))
        match ask.request:
            case Generate():
                self.found.add(ask.request, response)
            case Score():
                self.found.note_scores(ask.request, response)

    def resume(self) -> None:
        """Hand over the responses, or the news that the budget is spent."""
        self._round += 1
        self.asks = []
        if self.cut_by is not None:
            self._stop(self.cut_by)
        else:
            response = self.responses if self._is_list else self.responses[0]
            self._advance(lambda: self._steps.send(response))

    def charge(self, role: str, read: int = 0, written: int = 0, cached: int = 0, calls: int = 0) -> None:
        """Add to the usage of a role, or of a scorer, or of a tool."""
        spent = self.usage.get(role)
        if spent is None:
            spent = self.usage[role] = Usage()
        spent.prompt_tokens += read
        spent.completion_tokens += written
        spent.cached_tokens += cached
        spent.calls += calls

    def _start(self, strategy: Strategy) -> Request | list[Request]:
        self._steps = strategy(self.problem)
        return next(self._steps)

    def _stop(self, limit: str) -> None:
        self._advance(lambda: self._steps.throw(BudgetExhausted(f"the budget is spent: {limit}")))
        if self.result is None:  # it asks for more
            with suppress(Exception):
                self._steps.close()
            self._end(self.found.best())
        if self.result is not None:
            self.result.stopped_by = limit

    def _advance(self, step: Callable[[], Any]) -> None:
        """The plugin boundary: whatever a strategy does here, the other problems go on."""
        try:
            self._take(step())
        except StopIteration as stop:
            self._finish(stop.value)
        except BudgetExhausted:
            self._end(self.found.best())
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")

    def _take(self, yielded: Any) -> None:
        self._is_list = isinstance(yielded, list)
        self.pending = yielded if self._is_list else [yielded]
        self.responses = [None] * len(self.pending)
        for request in self.pending:
            if not isinstance(request, _REQUESTS):
                raise TypeError(f"the strategy yielded {request!r}, expected a request or a list of requests")

    def _finish(self, value: Any) -> None:
        if isinstance(value, Result):
            self._end(value)
        else:
            self._fail(f"TypeError: the strategy returned {value!r}, expected a Result")

    def _fail(self, error: str) -> None:
        self._end(Result(answer=None, text="", candidates=self.found.candidates(), error=error))

    def _end(self, result: Result) -> None:
        self.result = Result(
            result.answer, result.text, result.candidates, self.usage, result.stopped_by, self.trace, result.error
        )
