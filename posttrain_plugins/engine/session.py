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
from posttrain_plugins.engine.keys import key_of, request_key, seed_of
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.problem_run import BudgetMeter, PendingRequest, ProblemRun
from posttrain_plugins.engine.scoring import Call, Scored, ScoreKind, calls, items_of, kind_of, score_keys, spent_of
from posttrain_plugins.engine.tools import Tool, use
from posttrain_plugins.errors import InputError, Interrupted
from posttrain_plugins.types import CallTool, Completion, Generate, Request, ResolvedReward, Score, ScoreSteps, Usage

__all__ = ["Progress", "Session"]

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
    total: BudgetMeter
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
            seconds = max(time.monotonic() - self.started, 1e-9)
            # no pace where nothing is drawn: all may stand in the log, and what takes time is a reward
            pace = {"completions": float(self.completions), "tokens_per_s": self.tokens / seconds}
            figures = pace if self.tokens else {}
            share = self.total.share()
            self.progress(
                self.done, self.count, "problem", figures if share is None else {**figures, "budget_spent": share}
            )
        if self.should_stop is not None and self.should_stop():
            raise Interrupted("stopped between two completions", hint="start again: what was answered is in the log")

    # Admission

    def admit(self, run: ProblemRun) -> list[PendingRequest]:
        """Admit the requests of a problem that its budget and the total allow; return those with fresh keys.

        `charge_known` comes next: not at once, because what one request is given from the log must not be the reason to
        refuse another one that was asked for at the same time, and that the first run did not refuse.
        """
        claimed: set[str] = set()  # two requests of one round may want the same answer; the first one gets it
        run.cut_by = None
        for slot, request in enumerate(run.requests):
            run.cut_by = run.meter.refuses(request) or self.total.refuses(request)
            if run.cut_by:
                break
            keys = self._keys(run, request)
            new = [key for key in dict.fromkeys(keys) if key not in claimed]
            claimed.update(new)
            pending = PendingRequest(run, slot, request, keys, [key for key in new if key not in self.log])
            if len(pending.fresh) < len(new):
                pending.known_tokens = sum(self._cost(request, key) for key in new if key in self.log)
            run.admitted.append(pending)
            # Calls and completions count when they are asked for, so that a budget of 8 completions is exactly 8. What
            # a completion takes in tokens is known only when it is here: `_charge`.
            for meter in (run.meter, self.total):
                meter.calls += 1
                meter.completions += len(keys) if isinstance(request, Generate) else 0
            if isinstance(request, Generate) and len(keys) < request.n:
                run.cut_by = "completions"
                break
        return [pending for pending in run.admitted if pending.fresh]

    def _keys(self, run: ProblemRun, request: Request) -> list[str]:
        """Return where the answers stand in the log: of a completion as many as the budgets allow."""
        match request:
            case Generate():
                backend = self.backend(request.model)
                check_request(request, backend, self.name)
                base = request_key(request, backend.identity, run.problem.id, self.seed)
                n = int(min(request.n, run.meter.room(), self.total.room()))
                if request.params.temperature == 0:
                    return [base] * n  # greedy draws are all the same: one is drawn, and paid once
                return [run.next_draw_key(base) for _ in range(n)]
            case Score() | ScoreSteps():
                items = items_of(request, run.problem, run.columns)
                return score_keys(kind_of(request), self.scorer(request.scorer), items)
            case CallTool():
                # The policy stands in the key: what a strategy remembers of one model is no answer for the next. So
                # does the draw: a tool that is asked again may say something else.
                one = self._only or cast(Mapping[str, AnyBackend], self.backends).get("policy")
                policy = "" if one is None else one.identity
                return [
                    run.next_draw_key(key_of("tool", request.name, dict(request.arguments), run.problem.id, policy))
                ]

    def charge_known(self, run: ProblemRun) -> None:
        """Charge what a round is given from the log like what is drawn; once, if several requests want it."""
        if known := sum([pending.known_tokens for pending in run.admitted]):
            run.meter.tokens += known
            self.total.tokens += known

    # Who answers

    def backend(self, role: str) -> AnyBackend:
        """Return what answers for a model role."""
        if self._only is not None:
            return self._only
        backends = cast(Mapping[str, AnyBackend], self.backends)
        if role not in backends:
            known = ", ".join(sorted(backends))
            raise InputError(
                f"no backend for model role {role!r}, expected one of: {known}", hint="pass it in backend="
            )
        return backends[role]

    def scorer(self, name: str) -> ResolvedReward:
        """Return the reward that requests ask for by this name."""
        if name not in self.scorers:
            known = ", ".join(sorted(self.scorers)) or "none"
            raise InputError(f"no scorer {name!r}, expected one of: {known}", hint="pass it in scorers=")
        return self.scorers[name]

    # Landing

    def order(self, pending: PendingRequest) -> tuple[Generate, list[int]]:
        """Return what a backend is asked for: the fresh completions of a request, and their seeds."""
        request, fresh = pending.request, pending.fresh
        # the same object where nothing is known yet, which is the usual case
        return request if request.n == len(fresh) else replace(request, n=len(fresh)), [seed_of(key) for key in fresh]

    def land(self, pending: PendingRequest, j: int, completion: Completion) -> None:
        """Take in completion `j` of what was ordered: into the log, unless it failed, and charged."""
        key, spent = pending.fresh[j], completion.usage
        self.completions += 1
        if not hasattr(self.backend(pending.request.model), "on_tokens"):  # one that has it told them as it drew
            self.tokens += spent.completion_tokens
        pending.landed[key] = completion
        # A failed sample is not logged, so that the next run with this log asks for it again.
        if completion.finish_reason != "error":
            problem = pending.run.problem.id
            self.log.put(key, completion, kind="completion", model=pending.request.model, problem=problem)
        self._charge(pending, pending.request.model, spent, is_counted=spent.calls > 0)

    def land_missing(self, pending: PendingRequest) -> None:
        """Make failed samples of what a backend has left out."""
        for j, key in enumerate(pending.fresh):
            if key not in pending.landed:
                self.land(pending, j, Completion("", finish_reason="error", error="the backend gave no completion"))

    def score_calls(self, waiting: Iterable[PendingRequest]) -> list[Call]:
        """Return the calls that score what is fresh in these requests: one per scorer and kind for like prompts."""
        groups: dict[tuple[str, ScoreKind], dict[str, Scored]] = {}
        for pending in waiting:
            items = items_of(pending.request, pending.run.problem, pending.run.columns)
            by_key = dict(zip(pending.keys, items, strict=True))
            fresh = {key: by_key[key] for key in pending.fresh}
            groups.setdefault((pending.request.scorer, kind_of(pending.request)), {}).update(fresh)
        return [
            call for (name, kind), items in groups.items() for call in calls(kind, self.scorer(name), items, self.log)
        ]

    def land_scores(self, pending: PendingRequest) -> None:
        """Charge what the scores of a request cost, which are in the log."""
        reward = self.scorer(pending.request.scorer)
        costs = [self.log.cost_of(key) for key in pending.fresh if key in self.log]
        if costs:  # none where the time was over before the scorer was called
            self._charge(pending, reward.name, sum(costs, Usage()), is_counted=spent_of(reward) is not None)

    def call_tool(self, pending: PendingRequest) -> str:
        """Return the tool's answer; to be landed."""
        return use(self.tools, pending.request)

    def land_tool(self, pending: PendingRequest, answer: str) -> None:
        """Take in a tool's answer, an error that is told to the model too."""
        name = pending.request.name
        self.log.put(pending.fresh[0], answer, kind="tool", tool=name, problem=pending.run.problem.id)
        self._charge(pending, name, Usage())

    def _charge(self, pending: PendingRequest, role: str, spent: Usage, is_counted: bool = False) -> None:
        """Charge what was answered; a request is one call, unless what answers it has counted its calls."""
        made = spent.calls if is_counted else int(not pending.is_begun)
        pending.is_begun = True
        pending.run.charge(role, spent.prompt_tokens, spent.completion_tokens, calls=made)
        tokens = spent.prompt_tokens + spent.completion_tokens
        pending.run.meter.tokens += tokens
        self.total.tokens += tokens

    # Handing over

    def settle(self, run: ProblemRun) -> None:
        """Give the problem what has landed, in the order of its requests, and let it go on."""
        landed = {key: completion for pending in run.admitted for key, completion in pending.landed.items()}
        for pending in run.admitted:
            is_drawn = isinstance(pending.request, Generate)
            found: list[Any] = []
            for key in pending.keys:
                if key in landed:
                    found.append(landed[key])
                elif key in self.log:  # of this run, of an earlier one, or of another request of this round
                    found.append(self.log.completion(key) if is_drawn else self.log[key])
            if len(found) < len(pending.keys):  # it was not waited for: the round is cut
                run.cut_by = run.cut_by or run.meter.is_spent() or self.total.is_spent() or "seconds"
            cached = 0
            if len(pending.fresh) < len(pending.keys):
                # for nothing, or rather paid elsewhere: by an earlier run, or by another request of this round
                paid = set(pending.fresh)
                given = dict.fromkeys(key for key in pending.keys if key not in paid and key in self.log)
                cached = sum(self._cost(pending.request, key) for key in given)
            run.charge(self._role(pending.request), cached=cached)
            # Of completions fewer than asked for are of use to the fallback; half a call's scores are not.
            if is_drawn or len(found) == len(pending.keys):
                run.answer(pending, found[0] if isinstance(pending.request, CallTool) else found)
        run.resume()
        self.done += run.result is not None

    def _cost(self, request: Request, key: str) -> int:
        """Return the tokens that a logged answer took."""
        is_drawn = isinstance(request, Generate)
        return (self.log.completion(key).usage if is_drawn else self.log.cost_of(key)).total_tokens

    def _role(self, request: Request) -> str:
        """Return the name under which the usage of a request stands."""
        match request:
            case Generate():
                return request.model
            case CallTool():
                return request.name
        return self.scorer(request.scorer).name
