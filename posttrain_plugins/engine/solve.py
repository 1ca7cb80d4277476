"""Runs strategies over many problems at once.

Strategies are plain generators. What they ask for is answered by one of two drivers: in waves, with one call per
backend and one per scorer for **all** live problems (`waves.py`), so that a strategy that thinks about one problem is
batched over all of them; or, where a backend is a server, with no barrier between problems (`stream.py`). Both give the
same results for the same answers: admission, keys, budgets, usage, log and trace are one code (`session.py`).

Every completion has a key: the model's role and identity, the prompt, the sampling parameters, the problem's id and how
often this problem has drawn from that same request before. The key is the completion's noise, its cache entry and its
line in the log. It knows nothing of the strategy: `self_consistency(n=8)` and `best_of_n(n=8)` draw the same eight
completions, and the second one costs nothing. With the same log, a run that was killed is replayed exactly up to where
it stood, then goes on. No paper.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.backends.protocol import AnyBackend
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.problem_run import BudgetMeter, ProblemRun
from posttrain_plugins.engine.session import Progress, Session
from posttrain_plugins.engine.tool_loop import ToolLoop
from posttrain_plugins.engine.tools import Tools, schema_of, toolbox
from posttrain_plugins.engine.waves import run_waves
from posttrain_plugins.errors import InputError
from posttrain_plugins.text.answers import candidates, choose
from posttrain_plugins.text.readers import reading
from posttrain_plugins.types import Budget, Completion, Generate, Problem, ResolvedReward, Result, Strategy

__all__ = ["Progress", "is_thinking", "sample", "solve"]

_LATER = random.Random(0)  # in place of a problem's own generator until that is seeded


def solve(
    strategy: Strategy,
    problems: Sequence[Problem],
    *,
    backend: AnyBackend | Mapping[str, AnyBackend],
    scorers: Mapping[str, ResolvedReward] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    tools: Tools | None = None,
    tool_loop: ToolLoop | None = None,
    budget: Budget | None = None,
    total_budget: Budget | None = None,
    log: RequestLog | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    reader: str | None = None,
) -> list[Result]:
    """Let a strategy solve problems.

    Args:
        strategy: called once per problem; what it raises becomes the `error` of that problem's result.
        problems: P problems with different ids; one without gets its place, "0" to "P-1".
        backend: answers `Generate`; a mapping gives one for each model role (`Generate.model`). Backends in this
            process and servers may be mixed.
        scorers: answer `Score` and `ScoreSteps`, by the name that these ask for.
        columns: further columns, P values each. Scorers are given them, strategies never see them.
        tools: answer `CallTool`, beside the strategy's own `tools` (these give way where names are equal); functions,
            or a mapping by name. What a tool raises is answered as text.
        tool_loop: the policy may call these tools in every completion, which is then a whole conversation; a strategy
            with `tools` of its own calls them itself.
        budget: limits for each problem. Thrown into the strategy; uncaught, the result is the best candidate so far.
            What one round asks for is admitted together, so a round in flight may end above `tokens`.
        total_budget: limits for all problems together. Answers from the log count like fresh ones, so that a replay
            stops where the run did (`seconds` apart). Spent `tokens` or `seconds` end what is in flight, too; what a
            server had begun to write for it is in no count.
        log: where answered requests stand; None remembers them for this call only. Failed samples are not logged.
        seed: with the same seed, the same completions.
        progress: called as `progress(problems_done, P, "problem", figures)`, with `completions` and `tokens_per_s` once
            something is drawn, and, where there is a total budget, `budget_spent` (1 is all of its tightest limit).
        should_stop: asked after every completion, and while servers are waited for.
        reader: how strategies read answers, for votes and results (`text/readers.py`); by default as the caller does.

    Returns:
        P results, in the order of the problems.

    Raises:
        Interrupted: after `should_stop()`; what was answered is in the log.
        InputError: for a scorer or model role that is not there, a request that a backend cannot answer rightly, or two
            problems with the same id.
        PluginBroken: where a scorer raises.
    """
    # ids stand in keys: with one id two problems would draw the same noise, and read each other's log entries
    ids = [problem.id or str(i) for i, problem in enumerate(problems)]
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise InputError(f"two problems have the same id: {twice[0]!r}", hint="give each Problem its own id")
    name = type(strategy).__name__
    loops = tool_loop.told if tool_loop is not None else {}
    box = toolbox(loops, getattr(strategy, "tools", None), tools)
    strategy = tool_loop.around(strategy) if tool_loop is not None else strategy
    schemas = tuple(getattr(tool, "schema", None) or schema_of(name, tool) for name, tool in box.items())
    rows = [{name: values[i] for name, values in (columns or {}).items()} for i in range(len(problems))]
    with reading(reader, is_thinking(backend)), log_of(log) as answers:
        runs = []
        for problem, id, row in zip(problems, ids, rows, strict=True):
            prepared = Problem(problem.prompt, problem.params, id, _LATER, schemas or problem.tools)
            # noise of the problem's own: with one generator for all, the order in which they are served would matter
            prepared.seeded(f"{seed}:{id}")
            runs.append(ProblemRun(strategy, prepared, row, BudgetMeter(budget or Budget())))
        session = Session(
            name=name,
            backends=backend,
            scorers=scorers or {},
            tools=box,
            total=BudgetMeter(total_budget or Budget()),
            log=answers,
            seed=seed,
            progress=progress,
            should_stop=should_stop,
            count=len(runs),
            done=sum(run.result is not None for run in runs),  # a strategy may end without a request
        )
        _driver(backend)(session, runs)
        return [run.result for run in runs if run.result is not None]


def is_thinking(backend: AnyBackend | Mapping[str, AnyBackend]) -> bool:
    """Return whether the policy's chat template opens a thought, which its completions go on with."""
    policy = backend.get("policy") if isinstance(backend, Mapping) else backend
    return bool(getattr(policy, "opens_thought", False))


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
    """Return a context manager over the log: one that is opened here is closed here."""
    return nullcontext(log) if isinstance(log, RequestLog) else RequestLog(log)


@dataclass(frozen=True)
class _Draw:
    n: int

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        completions = yield Generate(problem.prompt, n=self.n, params=problem.params)
        return choose(candidates(completions), 0)


def _driver(backend: AnyBackend | Mapping[str, AnyBackend]) -> Callable[[Session, Sequence[ProblemRun]], None]:
    """Return the driver in waves where every backend answers whole batches, else the one for servers."""
    each = backend.values() if isinstance(backend, Mapping) else [backend]
    if not any(hasattr(one, "agenerate") for one in each):
        return run_waves
    # here, because no run of a model in this process needs asyncio
    from posttrain_plugins.engine.stream import run_stream

    return run_stream
