"""A reward under the guard: the same call, log name and attributes, with every score accounted for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError, RewardFailed
from posttrain_plugins.guard import outcome
from posttrain_plugins.guard.distinct_rows import DistinctRows, split_rows
from posttrain_plugins.guard.isolation import open_pool
from posttrain_plugins.guard.outcome import FAILED, OUTCOMES, ScoreMethod, ScoreOutcome
from posttrain_plugins.guard.settings import GuardSettings, refusal
from posttrain_plugins.guard.tools import GuardedTool
from posttrain_plugins.processes.pool import ProcessPool
from posttrain_plugins.types import ResolvedReward, ResolvedStrategy

__all__ = ["AsyncGuarded", "Guarded", "figures_of", "guard", "guarded_in"]

WINDOW = 32  # newest scores that a share is taken of, where a batch has not more
MAX_CONCURRENT = 64  # completions that an asynchronous reward judges at once, in one process
GRACE_S = 1.0  # a process cancels a coroutine by itself; this ends one that blocks


def guard(reward: Callable[..., Any], settings: GuardSettings, name: str = "") -> Guarded:
    """Return the reward under the guard; an asynchronous one stays asynchronous.

    Args:
        reward: a function, or an object with `__call__`.
        settings: how it is guarded.
        name: what messages and metrics call it, by default its own name.

    Raises:
        InputError: it holds a model and should be isolated.

    Example:
        >>> def shaky(completions, **columns): return [1 / len(text) for text in completions]
        >>> guard(shaky, GuardSettings())(completions=["ab", "", "ab"])
        [0.5, None, 0.5]
    """
    made = (AsyncGuarded if outcome.is_async(reward) else Guarded)(reward, settings, name)
    if made.is_isolated and getattr(reward, "holds_model", False) is True:
        raise refusal(made.name)
    return made


class Guarded:
    """A reward in the author's place. What it does not have itself, `bounds` and the like, is the author's.

    Args:
        func: the author's callable.
        settings: how it is guarded.
        name: what messages and metrics call it.
    """

    group: ClassVar[str] = "rewards"
    kinds: ClassVar[tuple[str, ...]] = OUTCOMES

    def __init__(self, func: Callable[..., Any], settings: GuardSettings, name: str = "") -> None:
        self.__name__: str = getattr(func, "__name__", type(func).__name__)  # what TRL logs it under
        self.func = self.__wrapped__ = func
        self.settings, self.name = settings, name or self.__name__
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self._pool: ProcessPool | None = None
        self._lock = threading.Lock()
        self._recent: deque[str] = deque()

    @property
    def is_isolated(self) -> bool:
        """Whether it scores in processes of its own: a plain function that hangs can be ended in no other way."""
        is_async = outcome.is_async(self.func)
        return self.settings.isolate == "process" or (self.settings.timeout_s is not None and not is_async)

    def __call__(self, prompts: Any = None, completions: Any = None, **columns: Any) -> list[float | None]:
        """Score each completion; the arguments go to the author's callable."""
        return self._score("__call__", _arguments(prompts, completions, columns))

    def __getattr__(self, name: str) -> Any:
        # Without the second condition, unpickling would look up `func` on an object that has none yet, for ever.
        if name.startswith("__") or "func" not in self.__dict__:
            raise AttributeError(name)
        found = getattr(self.__dict__["func"], name)
        return self._score_steps if name == "step_scores" else found

    def __getstate__(self) -> dict[str, Any]:
        # Processes and locks stay here; who unpickles it starts processes of its own.
        return {name: value for name, value in self.__dict__.items() if name not in ("_pool", "_lock", "_recent")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _pool=None, _lock=threading.Lock(), _recent=deque())

    def close(self) -> None:
        """End the processes, and what the reward itself holds; the next call starts them again."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        close_author = getattr(self.func, "close", None)
        if close_author is not None:
            close_author()

    def counts(self) -> dict[str, Any]:
        """Return what became of the scores so far, as JSON values that a checkpoint keeps."""
        with self._lock:
            return {"outcomes": dict(self.outcomes), "failures": dict(self.failures), "recent": list(self._recent)}

    def restore(self, counts: Mapping[str, Any]) -> None:
        """Go on from what `counts` gave, in place of what was counted since."""
        with self._lock:
            self.outcomes, self.failures = Counter(counts["outcomes"]), dict(counts["failures"])
            self._recent = deque(counts["recent"])

    # --- One call -------------------------------------------------------------------------------------------------

    def _score_steps(self, prompts: Any = None, completions: Any = None, **columns: Any) -> list[list[float]]:
        return self._score("step_scores", _arguments(prompts, completions, columns))

    def _score(self, method: ScoreMethod, arguments: Mapping[str, Any]) -> list[Any]:
        batch = split_rows(arguments)  # GRPO's groups repeat completions, the more the better the policy is
        if self.is_isolated:
            outcomes = self._wait_for_all(self._submit(method, batch))
        elif outcome.is_async(outcome.method_of(self.func, method)):
            outcomes = asyncio.run(self._score_concurrently(method, batch))
        else:
            outcomes = self._score_here(method, batch)
        return self._account(method, batch, outcomes)

    def _score_here(self, method: ScoreMethod, batch: DistinctRows) -> list[ScoreOutcome]:
        """Score in this process: all at once as without the guard, and one by one only where that fails."""
        try:
            values = list(outcome.method_of(self.func, method)(**batch.joint_arguments()))
        except InputError:
            raise
        except PLUGIN_FAILURES:  # the plugin boundary; told row by row
            values = []
        if len(values) == len(batch.rows):
            return [outcome.read_value(method, value) for value in values]
        return [outcome.score(self.func, method, batch.row_arguments(i)) for i in range(len(batch.rows))]

    async def _score_concurrently(self, method: ScoreMethod, batch: DistinctRows) -> list[ScoreOutcome]:
        free = asyncio.Semaphore(MAX_CONCURRENT)

        async def score_one(i: int) -> ScoreOutcome:
            async with free:
                return await outcome.score_async(self.func, method, batch.row_arguments(i), self.settings.timeout_s)

        return list(await asyncio.gather(*(score_one(i) for i in range(len(batch.rows)))))

    def _submit(self, method: ScoreMethod, batch: DistinctRows) -> list[Future[ScoreOutcome]]:
        with self._lock:
            pool = self._pool = self._pool or open_pool(self.func, self.settings)
        rows = [(method, batch.sendable_arguments(i)) for i in range(len(batch.rows))]
        if not outcome.is_async(outcome.method_of(self.func, method)):
            return pool.submit(rows, self.settings.timeout_s)
        # Coroutines wait most of the time, so a process takes many; all processes take part.
        size = max(1, min(MAX_CONCURRENT, -(-len(rows) // self.settings.workers)))
        return pool.submit(rows, self.settings.timeout_s, rows_per_request=size, grace_s=GRACE_S)

    def _wait_for_all(self, futures: Sequence[Future[ScoreOutcome]]) -> list[ScoreOutcome]:
        """Wait for all, unless one raises or ends the run; then the others are not begun any more."""
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                if self.settings.on_error == "raise" and any(future.result().kind in FAILED for future in done):
                    return [future.result() if future.done() else ScoreOutcome("none") for future in futures]
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    # --- What became of it ----------------------------------------------------------------------------------------

    def _account(self, method: ScoreMethod, batch: DistinctRows, outcomes: Sequence[ScoreOutcome]) -> list[Any]:
        """Count every completion's outcome, stop the run where it should stop, and return the scores."""
        of_each = [outcomes[place] for place in batch.places]
        counts = Counter[str](one.kind for one in of_each)
        with self._lock:
            self.outcomes.update(counts)
            for row, one in zip(batch.rows, outcomes, strict=True):  # the first of each kind, for the message
                if one.kind in FAILED:
                    text = str(row.get("completions", row.get("prompts", "?")))
                    shown = text if len(text) <= 160 else f"{text[:120]} ... {text[-30:]}"
                    self.failures.setdefault(one.kind, f"{one.detail}, on {shown}")
            self._recent.extend(one.kind for one in of_each)
            recent = list(self._recent)[-max(WINDOW, len(of_each)) :]
            while len(self._recent) > WINDOW:
                self._recent.popleft()
        log = batch.shared.get("log_metric")
        for kind in OUTCOMES if log else ():
            log(f"rewards/{self.name}/{kind}", float(counts[kind]))  # type: ignore[misc]
        # Logged first: where the run stops, its last figures say why.
        self._stop_if_failing(counts, Counter(recent), max(len(recent), WINDOW))
        return [self._value(method, batch.rows[i], one) for i, one in zip(batch.places, of_each, strict=True)]

    def _stop_if_failing(self, counts: Counter[str], recent: Counter[str], size: int) -> None:
        failed = [kind for kind in OUTCOMES if kind in FAILED and counts[kind]]
        if failed and self.settings.on_error == "raise":
            raise RewardFailed(
                f"reward '{self.name}' failed ({failed[0]}): {self.failures[failed[0]]}",
                hint="on_error: none goes on without such a score, on_error: 0.0 counts it as worthless",
            )
        limits = {"max_failure_share": FAILED, "max_none_share": frozenset({"none"})}
        for key, kinds in limits.items():
            share = sum(recent[kind] for kind in kinds) / size
            if share > getattr(self.settings, key):
                listed = ", ".join(f"{kind} ({recent[kind]})" for kind in OUTCOMES if kind in kinds and recent[kind])
                details = "; ".join(f"{kind}: {text}" for kind, text in self.failures.items() if kind in kinds)
                raise RewardFailed(
                    f"reward '{self.name}': {share:.0%} of the last {size} scores are {listed}, "
                    f"more than {key}: {getattr(self.settings, key):g}" + (f"\n{details}" if details else ""),
                    hint=f"mend the reward or its data, or raise {key} on it",
                )

    def _value(self, method: ScoreMethod, row: Mapping[str, Any], one: ScoreOutcome) -> Any:
        if one.kind == "ok":
            return one.value
        # "Cannot judge" is never a number, whatever stands for a failure: it says nothing of the completion.
        worth = self.settings.on_error if one.kind in FAILED else "none"
        is_number = worth not in ("none", "raise")
        if method == "__call__":
            return float(worth) if is_number else None
        return [float(worth)] * len(row.get("steps", [[None]])[0]) if is_number else []


class AsyncGuarded(Guarded):
    """An asynchronous reward in the author's place: all completions at once, and other such rewards beside it."""

    async def __call__(self, prompts: Any = None, completions: Any = None, **columns: Any) -> list[float | None]:  # type: ignore[override]
        """Score each completion; the arguments go to the author's callable."""
        batch = split_rows(_arguments(prompts, completions, columns))
        if self.is_isolated:
            outcomes = list(await asyncio.gather(*map(asyncio.wrap_future, self._submit("__call__", batch))))
        else:
            outcomes = await self._score_concurrently("__call__", batch)
        return self._account("__call__", batch, outcomes)


def _arguments(prompts: Any, completions: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    given = {"prompts": prompts, "completions": completions}
    return {**{name: value for name, value in given.items() if value is not None}, **columns}


# --- What a stage was given ------------------------------------------------------------------------------------------


def guarded_in(value: Any) -> Iterator[Guarded | GuardedTool]:
    """Yield every guarded reward and tool in a stage's inputs: in lists, strategies, and the fields of rewards."""
    if isinstance(value, Mapping):
        yield from guarded_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from guarded_in(item)
    elif isinstance(value, ResolvedStrategy):
        yield from guarded_in([value.scorers, getattr(value.strategy, "tools", None)])
    elif isinstance(value, ResolvedReward):
        yield from guarded_in(value.func)
    elif isinstance(getattr(value, "guard", None), GuardedTool):
        yield value.guard
    elif isinstance(value, Guarded):
        yield value
        yield from guarded_in(value.func)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from guarded_in([getattr(value, one.name, None) for one in fields(value)])


def figures_of(inputs: Mapping[str, Any]) -> dict[str, float]:
    """Return how many scores and calls came out in which way: `rewards/<name>/timeout`, `tools/<name>/refused`."""
    by_id = {id(one): one for one in guarded_in(inputs)}  # a reward may be a metric and a scorer
    used = [one for one in by_id.values() if one.outcomes]
    return {f"{one.group}/{one.name}/{kind}": float(one.outcomes[kind]) for one in used for kind in one.kinds}
