"""Runs strategies over many problems at once.

Strategies are plain generators. In each wave the engine collects what **all** live problems ask for and answers it
with one call per backend and one per scorer, so a strategy that thinks about one problem is batched over all of them.

Every completion has a key: the model's role and identity, the prompt, the sampling parameters, the problem's id and how
often this problem has drawn from that same request before. The key is the completion's noise, its cache entry and its
line in the log. It knows nothing of the strategy: `self_consistency(n=8)` and `best_of_n(n=8)` draw the same eight
completions, and the second one costs nothing. With the same log, a run that was killed is replayed exactly up to where
it stood, then goes on. No paper.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.errors import InputError, Interrupted
from posttrain_plugins.inference.backends import Backend
from posttrain_plugins.inference.live import Live, Meter
from posttrain_plugins.inference.log import RequestLog
from posttrain_plugins.inference.scoring import Scored, count_tokens, is_scored, key_of, score, score_steps
from posttrain_plugins.types import (
    Budget,
    CallTool,
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    Score,
    ScoreSteps,
    Strategy,
    Usage,
)

__all__ = ["Progress", "sample", "solve"]

Progress: TypeAlias = Callable[[int, int | None, str, Mapping[str, float]], None]
Tool: TypeAlias = Callable[..., Any]


def solve(
    strategy: Strategy,
    problems: Sequence[Problem],
    *,
    backend: Backend | Mapping[str, Backend],
    scorers: Mapping[str, ResolvedReward] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    tools: Mapping[str, Tool] | None = None,
    budget: Budget | None = None,
    total_budget: Budget | None = None,
    log: RequestLog | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Result]:
    """Let a strategy solve problems.

    Args:
        strategy: called once per problem; what it raises becomes the `error` of that problem's result.
        problems: P problems with different ids.
        backend: answers `Generate`; a mapping gives one for each model role (`Generate.model`).
        scorers: answer `Score` and `ScoreSteps`, by the name that these ask for.
        columns: further columns, P values each. Scorers are given them, strategies never see them.
        tools: answer `CallTool`; what a tool raises is answered as text.
        budget: limits for each problem. Thrown into the strategy; uncaught, the result is the best candidate so far.
        total_budget: limits for all problems together. Answers from the log count like fresh ones, so that a replay
            stops where the run did (`seconds` apart).
        log: where answered requests stand; None remembers them for this call only. Failed samples are not logged.
        seed: with the same seed, the same completions.
        progress: called as `progress(problems_done, P, "problem", figures)`.
        should_stop: asked after every completion.

    Returns:
        P results, in the order of the problems.

    Raises:
        Interrupted: after `should_stop()`; what was answered is in the log.
        InputError: for a scorer or model role that is not there, or two problems with the same id.
        PluginBroken: where a scorer raises.
    """
    _check_ids(problems)
    with log_of(log) as answers:
        engine = _Engine(
            backends=backend,
            scorers=scorers or {},
            tools=tools or {},
            total=Meter(total_budget or Budget()),
            log=answers,
            seed=seed,
            progress=progress or (lambda *_: None),
            should_stop=should_stop or (lambda: False),
        )
        rows = ({name: values[i] for name, values in (columns or {}).items()} for i in range(len(problems)))
        lives = [
            Live(strategy, replace(problem, rng=random.Random(f"{seed}:{problem.id}")), row, Meter(budget or Budget()))
            for problem, row in zip(problems, rows, strict=True)
        ]
        return engine.run(lives)


def sample(problems: Sequence[Problem], n: int, **options: Any) -> list[Result]:
    """Draw `n` completions of each problem, the same that every strategy with equal parameters is given.

    Args:
        problems: P problems.
        n: completions per problem.
        options: those of `solve`.

    Returns:
        P results whose candidates are the completions; failed ones are left out.
    """
    return solve(_Draw(n), problems, **options)


def log_of(log: RequestLog | Path | None) -> AbstractContextManager[RequestLog]:
    """A context manager over the log: one that is opened here is closed here."""
    return nullcontext(log) if isinstance(log, RequestLog) else RequestLog(log)


@dataclass(frozen=True)
class _Draw:
    n: int

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        completions = yield Generate(problem.prompt, n=self.n, params=problem.params)
        return choose(candidates(completions), 0)


# --- The waves -------------------------------------------------------------------------------------------------------


@dataclass
class _Ask:
    """One admitted request. For a `Generate`, `keys` name the completions that the budget allows."""

    live: Live
    slot: int
    request: Any
    keys: list[str] = field(default_factory=list)

    def answer(self, response: Any) -> None:
        self.live.responses[self.slot] = response


@dataclass
class _Engine:
    backends: Backend | Mapping[str, Backend]
    scorers: Mapping[str, ResolvedReward]
    tools: Mapping[str, Tool]
    total: Meter
    log: RequestLog
    seed: int
    progress: Progress
    should_stop: Callable[[], bool]
    done: int = 0
    count: int = 0
    drawn_completions: int = 0
    drawn_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self, problems: list[Live]) -> list[Result]:
        self.count = len(problems)
        while live := [problem for problem in problems if problem.result is None]:
            self.done = self.count - len(live)
            self._check_in()
            self._answer([ask for problem in live for ask in self._admit(problem)])
            for problem in live:
                problem.resume()
        self.done = self.count
        self._check_in()
        return [problem.result for problem in problems if problem.result is not None]

    def _check_in(self) -> None:
        """Tell how far we are, and stop if told to."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        figures = {"completions": float(self.drawn_completions), "tokens_per_s": self.drawn_tokens / seconds}
        self.progress(self.done, self.count, "problem", figures)
        if self.should_stop():
            raise Interrupted("stopped between two completions", hint="start again: what was answered is in the log")

    def _admit(self, live: Live) -> Iterable[_Ask]:
        """The pending requests of a problem that its budget and the total allow, charged."""
        live.cut_by = None
        for slot, request in enumerate(live.pending):
            live.cut_by = live.meter.refuses(request) or self.total.refuses(request)
            if live.cut_by:
                return
            ask = _Ask(live, slot, request)
            if isinstance(request, Generate):
                ask.keys = self._keys(live, request)
                live.cut_by = "completions" if len(ask.keys) < request.n else None
            self._charge(ask, calls=1, completions=len(ask.keys))
            yield ask

    def _charge(self, ask: _Ask, calls: int = 0, completions: int = 0, tokens: int = 0) -> None:
        for meter in (ask.live.meter, self.total):
            meter.calls += calls
            meter.completions += completions
            meter.tokens += tokens

    def _answer(self, asks: list[_Ask]) -> None:
        of = {kind: [ask for ask in asks if isinstance(ask.request, kind)] for kind in (Generate, CallTool)}
        self._generate(of[Generate])
        for kind in (Score, ScoreSteps):
            for name in dict.fromkeys(ask.request.scorer for ask in asks if isinstance(ask.request, kind)):
                self._score(name, [a for a in asks if isinstance(a.request, kind) and a.request.scorer == name])
        for ask in of[CallTool]:
            ask.answer(self._call_tool(ask.live, ask.request))

    # Generate

    def _keys(self, live: Live, request: Generate) -> list[str]:
        """The names of the completions that a request asks for, as many as the budgets allow."""
        params = asdict(replace(request.params, seed=None))
        noise = self.seed if request.params.seed is None else request.params.seed
        identity = self._backend(request.model).identity
        base = key_of("completion", request.model, identity, request.prompt, params, live.problem.id, noise)
        n = int(min(request.n, live.meter.room(), self.total.room()))
        if request.params.temperature == 0:
            return [base] * n  # greedy draws are all the same
        first = live.draws[base]
        live.draws[base] += n
        return [key_of(base, draw) for draw in range(first, first + n)]

    def _generate(self, asks: list[_Ask]) -> None:
        fresh = {key: ask for ask in asks for key in ask.keys if key not in self.log}
        failed: dict[str, Completion] = {}
        backends = {
            id(backend): backend for backend in map(self._backend, dict.fromkeys(a.request.model for a in asks))
        }
        for backend in backends.values():
            mine = {key: ask for key, ask in fresh.items() if self._backend(ask.request.model) is backend}
            self._draw(backend, mine, failed)
        for ask in asks:
            self._hand_over(ask, fresh, failed)

    def _draw(self, backend: Backend, fresh: Mapping[str, _Ask], failed: dict[str, Completion]) -> None:
        """One call for the wave; each completion is logged as it comes."""
        groups: dict[int, list[str]] = {}
        for key, ask in fresh.items():
            groups.setdefault(id(ask), []).append(key)
        keys = list(groups.values())
        if not keys:
            return
        batch = [replace(fresh[group[0]].request, n=len(group)) for group in keys]
        for i, j, completion in backend.generate(batch, [[_seed_of(key) for key in group] for group in keys]):
            self._keep(keys[i][j], fresh[keys[i][j]], completion, failed)
            self._check_in()
            if self.total.is_late():
                break

    def _keep(self, key: str, ask: _Ask, completion: Completion, failed: dict[str, Completion]) -> None:
        self.drawn_completions += 1
        self.drawn_tokens += completion.usage.completion_tokens
        if completion.finish_reason == "error":
            failed[key] = completion
        else:
            about = {"kind": "completion", "model": ask.request.model, "problem": ask.live.problem.id}
            self.log.put(key, asdict(completion), **about)

    def _hand_over(self, ask: _Ask, fresh: Mapping[str, _Ask], failed: Mapping[str, Completion]) -> None:
        have = [key for key in ask.keys if key in self.log or key in failed]
        completions = [failed[key] if key in failed else _completion(self.log[key]) for key in have]
        if len(have) < len(ask.keys):
            ask.live.cut_by = "seconds"
        ask.answer(completions)
        if ask.request.model == "policy":
            ask.live.found += candidates(completions)
        distinct = dict(zip(have, completions, strict=True))
        usage = _usage(
            [c for k, c in distinct.items() if k in fresh], [c for k, c in distinct.items() if k not in fresh]
        )
        ask.live.charge(ask.request.model, usage)
        self._charge(ask, tokens=usage.total_tokens + usage.cached_tokens)

    def _backend(self, role: str) -> Backend:
        if not isinstance(self.backends, Mapping):
            return self.backends
        if role not in self.backends:
            known = ", ".join(sorted(self.backends))
            raise InputError(
                f"no backend for model role {role!r}, expected one of: {known}", hint="pass it in backend="
            )
        return self.backends[role]

    # Score, ScoreSteps, CallTool

    def _score(self, name: str, asks: list[_Ask]) -> None:
        """One call of the scorer for all that the wave wants to know of it."""
        if name not in self.scorers:
            known = ", ".join(sorted(self.scorers)) or "none"
            raise InputError(f"no scorer {name!r}, expected one of: {known}", hint="pass it in scorers=")
        reward = self.scorers[name]
        parts = [_items(ask) for ask in asks]
        is_steps = isinstance(asks[0].request, ScoreSteps)
        kind = "step_scores" if is_steps else "score"
        fresh = [[item for item in part if not is_scored(kind, reward, item, self.log)] for part in parts]
        ask_reward: Callable[..., list[Any]] = score_steps if is_steps else score
        values = iter(ask_reward(reward, [item for part in parts for item in part], self.log))
        for ask, part, new in zip(asks, parts, fresh, strict=True):
            scores = [next(values) for _ in part]
            ask.answer(scores)
            self._record_scores(ask, reward, part, new, scores)

    def _record_scores(
        self, ask: _Ask, reward: ResolvedReward, items: list[Scored], fresh: list[Scored], scores: list[Any]
    ) -> None:
        read, total = count_tokens(reward, fresh), count_tokens(reward, items)
        ask.live.charge(reward.name, Usage(prompt_tokens=read, cached_tokens=total - read, calls=int(bool(fresh))))
        self._charge(ask, tokens=total)
        if isinstance(ask.request, Score):
            ask.live.note_scores(dict(zip(ask.request.completions, scores, strict=True)))

    def _call_tool(self, live: Live, request: CallTool) -> str:
        base = key_of("tool", request.name, dict(request.arguments), live.problem.id)
        key = key_of(base, live.draws[base])
        live.draws[base] += 1
        if key not in self.log:
            self.log.put(key, _use(self.tools, request), kind="tool", tool=request.name, problem=live.problem.id)
        live.charge(request.name, Usage(calls=1))
        return str(self.log[key])


def _check_ids(problems: Sequence[Problem]) -> None:
    twice = [name for name, times in Counter(problem.id for problem in problems).items() if times > 1]
    if twice:
        raise InputError(f"two problems have the same id: {twice[0]!r}", hint="give each Problem its own id")


def _seed_of(key: str) -> int:
    return int(key[:16], 16) >> 1  # 63 bits


def _completion(entry: Mapping[str, Any]) -> Completion:
    return Completion(**{**entry, "usage": Usage(**entry["usage"])})


def _usage(fresh: list[Completion], cached: list[Completion]) -> Usage:
    """A prompt is read once for all the completions that are drawn from it together."""
    drawn, known = (sum(c.usage.completion_tokens for c in part) for part in (fresh, cached))
    prompt = max((c.usage.prompt_tokens for c in fresh or cached), default=0)
    return Usage(prompt if fresh else 0, drawn, known + (0 if fresh else prompt), calls=int(bool(fresh)))


def _items(ask: _Ask) -> list[Scored]:
    live, request = ask.live, ask.request
    steps = request.steps if isinstance(request, ScoreSteps) else [()] * len(request.completions)
    texts = ["".join(parts) for parts in steps] if isinstance(request, ScoreSteps) else request.completions
    return [
        Scored(live.problem.id, request.prompt, text, live.columns, tuple(parts))
        for text, parts in zip(texts, steps, strict=True)
    ]


def _use(tools: Mapping[str, Tool], request: CallTool) -> str:
    """The plugin boundary of tools: what goes wrong is told to the model, which may try something else."""
    if request.name not in tools:
        return f"error: no tool {request.name!r}, expected one of: {', '.join(sorted(tools)) or 'none'}"
    try:
        return str(tools[request.name](**request.arguments))
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"
