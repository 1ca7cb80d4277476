"""One problem while a strategy is at work on it: the generator, what it waits for, what it has spent and drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.engine.keys import draw_key
from posttrain_plugins.engine.trace import event_of, prefill_of
from posttrain_plugins.errors import PLUGIN_FAILURES, BudgetExhausted
from posttrain_plugins.text.answers import choose, extract, majority
from posttrain_plugins.text.readers import opens_thought, read_behind
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

__all__ = ["BudgetMeter", "FallbackResult", "PendingRequest", "ProblemRun"]

_INFINITY = float("inf")
_REQUESTS = (Generate, Score, ScoreSteps, CallTool)


@dataclass(slots=True)
class BudgetMeter:
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
        """Return the limit that forbids this request, or None; `completions` forbids only drawing more of them."""
        if not self.is_limited:  # the usual case, once for each request: nothing is looked at
            return None
        limit = self.limit
        if limit.calls is not None and self.calls >= limit.calls:
            return "calls"
        # what was drawn may still be scored: `best_of_n(n=4)` within 4 completions chooses among all four
        if limit.completions is not None and isinstance(request, Generate) and self.completions >= limit.completions:
            return "completions"
        return self.is_spent()

    def is_spent(self) -> str | None:
        """Return the limit, `tokens` or `seconds`, that was reached while requests were in flight, or None."""
        if not self.is_limited:
            return None
        if self.limit.tokens is not None and self.tokens >= self.limit.tokens:
            return "tokens"
        return "seconds" if self.limit.seconds is not None and time.monotonic() >= self.deadline else None

    def room(self) -> float:
        """Return how many completions may still be drawn."""
        return _INFINITY if self.limit.completions is None else self.limit.completions - self.completions

    def share(self) -> float | None:
        """Return how much of the tightest limit is spent, 1 for all; None without limits."""
        if not self.is_limited:
            return None
        seconds = time.monotonic() - self.started
        pairs = (
            (self.tokens, self.limit.tokens),
            (self.completions, self.limit.completions),
            (self.calls, self.limit.calls),
            (seconds, self.limit.seconds),
        )
        # a limit of 0 is spent from the start
        return max((spent / max(limit, 1e-9) for spent, limit in pairs if limit is not None), default=None)

    @property
    def deadline(self) -> float:
        """When the seconds end, on the monotonic clock."""
        return _INFINITY if self.limit.seconds is None else self.started + self.limit.seconds


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One request that was admitted and is being answered.

    Args:
        run: of the problem that asks.
        slot: its place in what the strategy yielded.
        request: the request.
        keys: where its answers stand in the log: a completion, a score or a tool's answer each.
        fresh: those of `keys` that are still to be answered, by this request alone.
        known_tokens: what those cost that the log knows.
        landed: completions by key, as they came; failed ones are nowhere else.
        is_begun: whether something of `fresh` was answered.
    """

    run: ProblemRun
    slot: int
    request: Any
    keys: list[str]
    fresh: list[str]
    known_tokens: int = 0
    landed: dict[str, Completion] = field(default_factory=dict)
    is_begun: bool = False


class FallbackResult:
    """The best result so far, for a problem whose budget ends or whose strategy raises.

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
        """Take in completions; a judge's, or a thought on the way, is nobody's answer."""
        # Candidates are made of them only when somebody wants these: most problems end with a result of their own.
        if request.model == "policy" and request.purpose in ("answer", "step"):
            self._drawn += [(request, one) for one in completions if one.finish_reason != "error"]

    def note_scores(self, request: Score, scores: Sequence[float | None]) -> None:
        """Remember what a scorer gave to texts; the newest score of a text counts."""
        self._scores.update(zip(request.completions, scores, strict=True))

    def candidates(self) -> list[Candidate]:
        """Return the finished candidates, else the longest of the others."""
        finished = [self._candidate(*drawn) for drawn in self._drawn if not self._goes_on(*drawn)]
        paths = [] if finished else [self._candidate(*drawn) for drawn in self._drawn]
        return finished or sorted(paths, key=lambda path: -len(path.text))[:1]

    def best(self) -> Result:
        """Return the candidate with the best score, else with the majority's answer, else the last."""
        among = self.candidates()
        if any(candidate.score is not None for candidate in among):
            scores = [-_INFINITY if candidate.score is None else candidate.score for candidate in among]
            return choose(among, scores.index(max(scores)))
        voted = majority([candidate.answer for candidate in among])
        return choose(among, len(among) - 1 if voted is None else voted)

    def _candidate(self, request: Generate, completion: Completion) -> Candidate:
        text = prefill_of(request.prompt, self._problem.prompt) + completion.text
        # scorers are given the whole path by some strategies, by others what was drawn
        score = self._scores.get(text, self._scores.get(completion.text))
        return Candidate(
            text, extract(text, prompt=self._problem.prompt), score, finish_reason=completion.finish_reason
        )

    def _goes_on(self, request: Generate, completion: Completion) -> bool:
        if completion.finish_reason == "length":  # an answer that was cut is all there will be of it
            return request.purpose == "step"
        is_own_stop = completion.stop_reason is None or completion.stop_reason in self._problem.params.stop
        return completion.finish_reason == "tool_calls" or not is_own_stop


class ProblemRun:
    """A strategy at work on one problem.

    `requests` is what it asks for, `admitted` what of it is being answered, `responses` what it will be sent, `cut_by`
    the limit that some of `requests` ran into; `result` is None until it is done.
    """

    def __init__(self, strategy: Strategy, problem: Problem, columns: Mapping[str, Any], meter: BudgetMeter) -> None:
        self.problem = problem
        self.columns = columns
        self.meter = meter
        self.usage: dict[str, Usage] = {}
        self.trace: list[dict[str, Any]] = []
        self.fallback = FallbackResult(problem)
        self.requests: list[Request] = []
        self.admitted: list[PendingRequest] = []
        self.responses: list[Any] = []
        self.cut_by: str | None = None
        self.result: Result | None = None
        self._is_thinking = opens_thought(problem.prompt)
        self._draws: dict[str, int] = {}
        self._round = 0
        self._is_list = False
        self._steps: Generator[Request | list[Request], Any, Result]

        def start() -> Request | list[Request]:  # within the boundary: a strategy may raise before its first yield
            self._steps = strategy(problem)
            return next(self._steps)

        self._advance(start)

    def next_draw_key(self, base: str) -> str:
        """Return the key of the next draw from a request; `base` is what all draws from it have in common.

        Counted by problem, not by strategy or by run: so any two strategies that ask for the same are given the same.
        """
        draw = self._draws.get(base, 0)
        self._draws[base] = draw + 1
        return draw_key(base, draw)

    def answer(self, pending: PendingRequest, response: Any) -> None:
        """Note down a response; it is handed over with those of the whole round."""
        self.responses[pending.slot] = response
        self.trace.append(event_of(pending.request, response, self._round))
        match pending.request:
            case Generate():
                self.fallback.add(pending.request, response)
            case Score():
                self.fallback.note_scores(pending.request, response)

    def resume(self) -> None:
        """Hand over the responses, or the news that the budget is spent."""
        self._round += 1
        self.admitted = []
        if self.cut_by is None:
            response = self.responses if self._is_list else self.responses[0]
            return self._advance(lambda: self._steps.send(response))
        # A round that was cut is not handed over, not even in part: a strategy that is sent less than it asked for
        # would have to look at each list's length. What has landed is in the fallback.
        self._advance(lambda: self._steps.throw(BudgetExhausted(f"the budget is spent: {self.cut_by}")))
        if self.result is None:  # it has caught the news and asks for more
            with suppress(*PLUGIN_FAILURES):
                self._steps.close()
            self._end(self.fallback.best())
        if self.result is not None:
            self.result.stopped_by = self.cut_by

    def charge(self, role: str, read: int = 0, written: int = 0, cached: int = 0, calls: int = 0) -> None:
        """Add to the usage of a role, or of a scorer, or of a tool."""
        # in place: this is done for each completion, and a sum of two would be a new object each time
        spent = self.usage.get(role)
        if spent is None:
            spent = self.usage[role] = Usage()
        spent.prompt_tokens += read
        spent.completion_tokens += written
        spent.cached_tokens += cached
        spent.calls += calls

    def _advance(self, step: Callable[[], Any]) -> None:
        """Let the strategy go on to its next yield. The plugin boundary: whatever it does, the other problems go on."""
        try:
            # A strategy that reads an answer does not say behind which prompt: this problem's.
            before = read_behind(self._is_thinking)
            try:
                yielded = step()
            finally:  # also what a strategy has laid around its own yields
                before.var.reset(before)
            self._is_list = isinstance(yielded, list)
            self.requests = yielded if self._is_list else [yielded]
            self.responses = [None] * len(self.requests)
            for request in self.requests:
                if not isinstance(request, _REQUESTS):
                    raise TypeError(f"the strategy yielded {request!r}, expected a request or a list of requests")
            return
        except StopIteration as stop:
            if isinstance(stop.value, Result):
                return self._end(stop.value)
            error = f"TypeError: the strategy returned {stop.value!r}, expected a Result"
        except BudgetExhausted:
            return self._end(self.fallback.best())
        except PLUGIN_FAILURES as raised:
            error = f"{type(raised).__name__}: {raised}"
        # no answer is chosen for a strategy that is broken: what was drawn stands by for whoever looks
        self._end(Result(answer=None, text="", candidates=self.fallback.candidates(), error=error))

    def _end(self, result: Result) -> None:
        # a Result of our own: the strategy may hold on to its one, or give the same to several problems
        self.result = Result(
            result.answer, result.text, result.candidates, self.usage, result.stopped_by, self.trace, result.error
        )
