"""What the two drivers share: which requests are admitted, under which keys, what they cost, what is handed over.

A driver takes a problem's round through three steps: `admit` its pending requests, answer those that have something
`fresh`, `settle` it. How many rounds are under way at once is the driver's business alone, so both give the same
results for the same answers.

1. What the log knows is charged when a round is admitted, what is fresh when it lands; so a replay finds a budget spent
   where the run did.
2. A budget is looked at when a request is admitted. A total that is spent while requests are in flight (tokens,
   seconds) cuts these too: what has landed counts, the rest is not waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from posttrain_plugins.backends.protocol import AnyBackend, check_request
from posttrain_plugins.engine.keys import draw_key, key_of, request_key, seed_of
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.problem_run import Ask, Live, Meter
from posttrain_plugins.engine.scoring import (
    Call,
    Scored,
    ScoreKind,
    calls,
    has_spent,
    items_of,
    kind_of,
    score_keys,
)
from posttrain_plugins.engine.tools import Tool, use
from posttrain_plugins.errors import InputError, Interrupted
from posttrain_plugins.types import CallTool, Completion, Generate, Request, ResolvedReward, Score, ScoreSteps, Usage

__all__ = ["Progress", "Session"]

_MISSING: Any = object()

Progress: TypeAlias = Callable[[int, int | None, str, Mapping[str, float]], None]


@dataclass(eq=False)
class Session:
    """One `solve`: who answers, what was spent in total, and what is known.

    Args:
        name: the strategy's, for messages.
        backends: one for all roles, or one for each.
        scorers: by the name that requests ask for.
        tools: by name.
        total: what all problems together have spent.
        log: the answers.
        seed: the run's noise.
        progress: told how far it is.
        should_stop: asked between completions.
        count: problems.
    """

    name: str
    backends: AnyBackend | Mapping[str, AnyBackend]
    scorers: Mapping[str, ResolvedReward]
    tools: Mapping[str, Tool]
    total: Meter
    log: RequestLog
    seed: int
    progress: Progress | None
    should_stop: Callable[[], bool] | None
    count: int
    done: int = 0
    completions: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    _only: AnyBackend | None = field(init=False)  # the backend for all roles, where there is one

    def __post_init__(self) -> None:
        self._only = None if isinstance(self.backends, Mapping) else self.backends

    def check_in(self) -> None:
        """Tell how far we are, and stop if told to."""
        if self.progress is not None:
            self.progress(self.done, self.count, "problem", self._figures())
        if self.should_stop is not None and self.should_stop():
            raise Interrupted("stopped between two completions", hint="start again: what was answered is in the log")

    def _figures(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        figures = {"completions": float(self.completions), "tokens_per_s": self.tokens / seconds}
        share = self.total.share()
        return figures if share is None else {**figures, "budget_spent": share}

    # Admission

    def admit(self, live: Live) -> list[Ask]:
        """The pending requests of a problem that its budget and the total allow; of these, those with fresh keys.

        `charge_known` comes next: not at once, because what one request is given from the log must not be the reason to
        refuse another one that was asked for at the same time, and that the first run did not refuse.
        """
        claimed: set[str] = set()  # two requests of one round may want the same answer; the first one gets it
        live.cut_by = None
        for slot, request in enumerate(live.pending):
            live.cut_by = live.meter.refuses(request) or self.total.refuses(request)
            if live.cut_by:
                break
            keys = self._keys(live, request)
            new = [key for key in dict.fromkeys(keys) if key not in claimed]
            claimed.update(new)
            ask = Ask(live, slot, request, keys, [key for key in new if key not in self.log])
            if len(ask.fresh) < len(new):
                ask.known_tokens = sum(self._cost(ask, key) for key in new if key in self.log)
            live.asks.append(ask)
            for meter in (live.meter, self.total):
                meter.calls += 1
                meter.completions += len(keys) if isinstance(request, Generate) else 0
            if isinstance(request, Generate) and len(keys) < request.n:
                live.cut_by = "completions"
                break
        return [ask for ask in live.asks if ask.fresh]

    def _keys(self, live: Live, request: Request) -> list[str]:
        match request:
            case Generate():
                return self._completion_keys(live, request)
            case Score() | ScoreSteps():
                items = items_of(request, live.problem, live.columns)
                return score_keys(kind_of(request), self.scorer(request.scorer), items)
            case CallTool():
                asked = dict(request.arguments)
                return [_next_draw(live, key_of("tool", request.name, asked, live.problem.id, self._policy()))]

    def _completion_keys(self, live: Live, request: Generate) -> list[str]:
        """The names of the completions that a request asks for, as many as the budgets allow."""
        backend = self.backend(request.model)
        check_request(request, backend, self.name)
        base = request_key(request, backend.identity, live.problem.id, self.seed)
        n = int(min(request.n, live.meter.room(), self.total.room()))
        if request.params.temperature == 0:
            return [base] * n  # greedy draws are all the same
        return [_next_draw(live, base) for _ in range(n)]

    def charge_known(self, live: Live) -> None:
        """What a round is given from the log counts like what is drawn; once, if several requests want it."""
        if known := sum([ask.known_tokens for ask in live.asks]):
            live.meter.tokens += known
            self.total.tokens += known

    # Who answers

    def backend(self, role: str) -> AnyBackend:
        if self._only is not None:
            return self._only
        backends = cast(Mapping[str, AnyBackend], self.backends)
        if role not in backends:
            known = ", ".join(sorted(backends))
            raise InputError(
                f"no backend for model role {role!r}, expected one of: {known}", hint="pass it in backend="
            )
        return backends[role]

    def _policy(self) -> str:
        """Whose tool calls these are: what a strategy remembers of one model is no answer for the next."""
        one = self._only or cast(Mapping[str, AnyBackend], self.backends).get("policy")
        return "" if one is None else one.identity

    def scorer(self, name: str) -> ResolvedReward:
        if name not in self.scorers:
            known = ", ".join(sorted(self.scorers)) or "none"
            raise InputError(f"no scorer {name!r}, expected one of: {known}", hint="pass it in scorers=")
        return self.scorers[name]

    # Landing

    def order(self, ask: Ask) -> tuple[Generate, list[int]]:
        """What a backend is asked for: the fresh completions of a request, and their seeds."""
        request = ask.request if ask.request.n == len(ask.fresh) else replace(ask.request, n=len(ask.fresh))
        return request, [seed_of(key) for key in ask.fresh]

    def land(self, ask: Ask, j: int, completion: Completion) -> None:
        """Completion `j` of what was ordered is here: into the log, unless it failed, and charged."""
        key, spent = ask.fresh[j], completion.usage
        self.completions += 1
        self.tokens += spent.completion_tokens
        ask.landed[key] = completion
        if completion.finish_reason != "error":
            self.log.put(key, completion, kind="completion", model=ask.request.model, problem=ask.live.problem.id)
        self._charge(ask, ask.request.model, spent, is_counted=spent.calls > 0)

    def land_missing(self, ask: Ask) -> None:
        """What a backend has left out are failed samples."""
        for j, key in enumerate(ask.fresh):
            if key not in ask.landed:
                self.land(ask, j, Completion("", finish_reason="error", error="the backend gave no completion"))

    def score_calls(self, asks: Iterable[Ask]) -> list[Call]:
        """The calls that score what is fresh in these requests: one per scorer and kind, if the prompts are alike."""
        groups: dict[tuple[str, ScoreKind], dict[str, Scored]] = {}
        for ask in asks:
            items = items_of(ask.request, ask.live.problem, ask.live.columns)
            of_key = dict(zip(ask.keys, items, strict=True))
            fresh = {key: of_key[key] for key in ask.fresh}
            groups.setdefault((ask.request.scorer, kind_of(ask.request)), {}).update(fresh)
        return [
            call for (name, kind), items in groups.items() for call in calls(kind, self.scorer(name), items, self.log)
        ]

    def land_scores(self, ask: Ask) -> None:
        """The scores of a request are in the log, with what they cost."""
        reward = self.scorer(ask.request.scorer)
        costs = [self.log.cost_of(key) for key in ask.fresh if key in self.log]
        if costs:
            self._charge(ask, reward.name, sum(costs, Usage()), is_counted=has_spent(reward))

    def call_tool(self, ask: Ask) -> str:
        """The tool's answer; to be landed."""
        return use(self.tools, ask.request)

    def land_tool(self, ask: Ask, answer: str) -> None:
        name = ask.request.name
        self.log.put(ask.fresh[0], answer, kind="tool", tool=name, problem=ask.live.problem.id)
        self._charge(ask, name, Usage())

    def _charge(self, ask: Ask, role: str, spent: Usage, is_counted: bool = False) -> None:
        """A request is one call, unless what answers it has counted its calls."""
        made = spent.calls if is_counted else int(not ask.is_begun)
        ask.is_begun = True
        ask.live.charge(role, spent.prompt_tokens, spent.completion_tokens, calls=made)
        tokens = spent.prompt_tokens + spent.completion_tokens
        ask.live.meter.tokens += tokens
        self.total.tokens += tokens

    # Handing over

    def settle(self, live: Live) -> None:
        """Give the problem what has landed, in the order of its requests, and let it go on."""
        landed = {key: completion for ask in live.asks for key, completion in ask.landed.items()}
        for ask in live.asks:
            answers = [landed[key] if key in landed else self._known(ask, key) for key in ask.keys]
            found = [answer for answer in answers if answer is not _MISSING]
            if len(found) < len(answers):
                live.cut_by = live.cut_by or live.meter.is_spent() or self.total.is_spent() or "seconds"
            live.charge(self._role(ask.request), cached=self._given(ask))
            if isinstance(ask.request, Generate) or len(found) == len(answers):
                live.answer(ask, found[0] if isinstance(ask.request, CallTool) else found)
        live.resume()
        self.done += live.result is not None

    def _known(self, ask: Ask, key: str) -> Any:
        if key not in self.log:
            return _MISSING
        return self.log.completion(key) if isinstance(ask.request, Generate) else self.log[key]

    def _given(self, ask: Ask) -> int:
        """The tokens that a request got for nothing: from the log, or because another one of the round pays."""
        if len(ask.fresh) == len(ask.keys):
            return 0
        mine = set(ask.fresh)
        return sum(self._cost(ask, key) for key in dict.fromkeys(ask.keys) if key not in mine and key in self.log)

    def _cost(self, ask: Ask, key: str) -> int:
        """The tokens that a logged answer took."""
        is_drawn = isinstance(ask.request, Generate)
        return (self.log.completion(key).usage if is_drawn else self.log.cost_of(key)).total_tokens

    def _role(self, request: Request) -> str:
        """Under which name the usage of a request stands."""
        match request:
            case Generate():
                return request.model
            case CallTool():
                return request.name
        return self.scorer(request.scorer).name


def _next_draw(live: Live, base: str) -> str:
    draw = live.draws.get(base, 0)
    live.draws[base] = draw + 1
    return draw_key(base, draw)
