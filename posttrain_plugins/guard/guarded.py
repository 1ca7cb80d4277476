"""A reward under the guard: the same call, log name and attributes, with every score accounted for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import fields, is_dataclass
from typing import Any

from posttrain_plugins.errors import InputError, RewardFailed
from posttrain_plugins.guard import outcome
from posttrain_plugins.guard.batch import Batch, split
from posttrain_plugins.guard.isolation import BUNDLE, IsolatedReward
from posttrain_plugins.guard.outcome import FAILED, KINDS, Method, Outcome
from posttrain_plugins.guard.settings import GuardSettings, refusal
from posttrain_plugins.types import ResolvedReward, ResolvedStrategy

__all__ = ["AsyncGuarded", "Guarded", "figures_of", "guard", "guarded_in"]

WINDOW = 32  # newest scores that a share is taken of, where a batch has not more


def guard(reward: Callable[..., Any], settings: GuardSettings, name: str = "") -> Guarded:
    """The reward under the guard; an asynchronous one stays asynchronous.

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

    def __init__(self, func: Callable[..., Any], settings: GuardSettings, name: str = "") -> None:
        self.__name__: str = getattr(func, "__name__", type(func).__name__)  # what TRL logs it under
        self.func = self.__wrapped__ = func
        self.settings, self.name = settings, name or self.__name__
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self._pool: IsolatedReward | None = None
        self._lock = threading.Lock()
        self._recent: deque[str] = deque()

    @property
    def is_isolated(self) -> bool:
        return self.settings.isolate == "process" or (self.settings.timeout_s is not None and not self._is_async)

    def __call__(self, prompts: Any = None, completions: Any = None, **columns: Any) -> list[float | None]:
        """Score each completion; the arguments go to the author's callable."""
        return self._score("__call__", _arguments(prompts, completions, columns))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "func" not in self.__dict__:
            raise AttributeError(name)
        found = getattr(self.__dict__["func"], name)
        return self._score_steps if name == "step_scores" else found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_pool", "_lock", "_recent")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _pool=None, _lock=threading.Lock(), _recent=deque())

    def close(self) -> None:
        """End the workers, and what the reward itself holds; the next call starts them again."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        inner = getattr(self.func, "close", None)
        if inner is not None:
            inner()

    # --- One call -------------------------------------------------------------------------------------------------

    def _score_steps(self, prompts: Any = None, completions: Any = None, **columns: Any) -> list[list[float]]:
        return self._score("step_scores", _arguments(prompts, completions, columns))

    def _score(self, method: Method, arguments: Mapping[str, Any]) -> list[Any]:
        batch = split(arguments)
        if self.is_isolated:
            found = _all_of(self._workers().score(method, self._sendable(batch)), self._gives_up)
        elif outcome.is_async(outcome.call_of(self.func, method)):
            found = asyncio.run(self._at_once(method, batch))
        else:
            found = self._here(method, batch)
        return self._finish(method, batch, found)

    def _here(self, method: Method, batch: Batch) -> list[Outcome]:
        """In this process: all at once as without the guard, and one by one only where that fails."""
        try:
            values = list(outcome.call_of(self.func, method)(**batch.whole()))
        except InputError:
            raise
        except Exception:  # the plugin boundary; told row by row
            values = []
        if len(values) == len(batch.rows):
            return [outcome.read_one(method, value) for value in values]
        return [outcome.score(self.func, method, batch.alone(i)) for i in range(len(batch.rows))]

    async def _at_once(self, method: Method, batch: Batch) -> list[Outcome]:
        """A coroutine for each row, so many at a time."""
        free = asyncio.Semaphore(BUNDLE)

        async def one(i: int) -> Outcome:
            async with free:
                return await outcome.score_async(self.func, method, batch.alone(i), self.settings.timeout_s)

        return list(await asyncio.gather(*(one(i) for i in range(len(batch.rows)))))

    def _sendable(self, batch: Batch) -> list[Any]:
        return [batch.sendable(i) for i in range(len(batch.rows))]

    def _workers(self) -> IsolatedReward:
        with self._lock:
            self._pool = self._pool or IsolatedReward(self.func, self.settings)
            return self._pool

    # --- What became of it ----------------------------------------------------------------------------------------

    def _finish(self, method: Method, batch: Batch, found: Sequence[Outcome]) -> list[Any]:
        """Counts every completion's outcome, stops the run where it should stop, and gives the scores."""
        spread = [found[place] for place in batch.places]
        counts = Counter[str](one.kind for one in spread)
        with self._lock:
            self.outcomes.update(counts)
            for row, one in zip(batch.rows, found, strict=True):
                if one.kind in FAILED:
                    self.failures.setdefault(one.kind, f"{one.detail}, on {_shown(row)}")
            self._recent.extend(one.kind for one in spread)
            recent = list(self._recent)[-max(WINDOW, len(spread)) :]
            while len(self._recent) > WINDOW:
                self._recent.popleft()
        log = batch.shared.get("log_metric")
        for kind in KINDS if log else ():
            log(f"rewards/{self.name}/{kind}", float(counts[kind]))  # type: ignore[misc]
        self._stop_if_failing(counts, Counter(recent), max(len(recent), WINDOW))
        return [self._value(method, batch, i, one) for i, one in zip(batch.places, spread, strict=True)]

    def _stop_if_failing(self, counts: Counter[str], recent: Counter[str], size: int) -> None:
        failed = [kind for kind in KINDS if kind in FAILED and counts[kind]]
        if failed and self.settings.on_error == "raise":
            raise RewardFailed(
                f"reward '{self.name}' failed ({failed[0]}): {self.failures[failed[0]]}",
                hint="on_error: none goes on without such a score, on_error: 0.0 counts it as worthless",
            )
        limits = {"max_failure_share": FAILED, "max_none_share": frozenset({"none"})}
        for key, kinds in limits.items():
            share = sum(recent[kind] for kind in kinds) / size
            if share > getattr(self.settings, key):
                told = "; ".join(f"{kind}: {text}" for kind, text in self.failures.items() if kind in kinds)
                raise RewardFailed(
                    f"reward '{self.name}': {share:.0%} of the last {size} scores are {_listed(recent, kinds)}, "
                    f"more than {key}: {getattr(self.settings, key):g}" + (f"\n{told}" if told else ""),
                    hint=f"mend the reward or its data, or raise {key} on it",
                )

    def _value(self, method: Method, batch: Batch, i: int, one: Outcome) -> Any:
        if one.kind == "ok":
            return one.value
        worth = self.settings.on_error if one.kind in FAILED else "none"
        if method == "__call__":
            return None if worth in ("none", "raise") else float(worth)
        steps = batch.rows[i].get("steps", [[None]])[0]
        return [] if worth in ("none", "raise") else [float(worth)] * len(steps)

    def _gives_up(self, one: Outcome) -> bool:
        return self.settings.on_error == "raise" and one.kind in FAILED

    @property
    def _is_async(self) -> bool:
        return outcome.is_async(self.func)


class AsyncGuarded(Guarded):
    """The same of an asynchronous reward: all completions at once, and other asynchronous rewards beside it."""

    async def __call__(self, prompts: Any = None, completions: Any = None, **columns: Any) -> list[float | None]:  # type: ignore[override]
        """Score each completion; the arguments go to the author's callable."""
        batch = split(_arguments(prompts, completions, columns))
        if self.is_isolated:
            futures = self._workers().score("__call__", self._sendable(batch))
            found = list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        else:
            found = await self._at_once("__call__", batch)
        return self._finish("__call__", batch, found)


def _arguments(prompts: Any, completions: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    given = {"prompts": prompts, "completions": completions}
    return {**{name: value for name, value in given.items() if value is not None}, **columns}


def _all_of(futures: Sequence[Future[Outcome]], gives_up: Callable[[Outcome], bool]) -> list[Outcome]:
    """Waits for all, unless one raises or ends the run; then the others are not begun any more."""
    try:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
            if any(gives_up(future.result()) for future in done):
                return [future.result() if future.done() else Outcome("none") for future in futures]
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _shown(row: Mapping[str, Any]) -> str:
    text = str(row.get("completions", row.get("prompts", "?")))
    return text if len(text) <= 160 else f"{text[:120]} ... {text[-30:]}"


def _listed(counts: Mapping[str, int], kinds: frozenset[str]) -> str:
    return ", ".join(f"{kind} ({counts[kind]})" for kind in KINDS if kind in kinds and counts.get(kind))


# --- What a stage was given ------------------------------------------------------------------------------------------


def guarded_in(value: Any) -> Iterator[Guarded]:
    """Every guarded reward in a stage's inputs: in lists, in strategies, and in the fields of other rewards."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from guarded_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from guarded_in(item)
    elif isinstance(value, ResolvedStrategy):
        yield from guarded_in(value.scorers)
    elif isinstance(value, ResolvedReward):
        yield from guarded_in(value.func)
    elif isinstance(value, Guarded):
        yield value
        yield from guarded_in(value.func)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from guarded_in([getattr(value, one.name, None) for one in fields(value)])


def figures_of(inputs: Mapping[str, Any]) -> dict[str, float]:
    """How many scores came out in which way, `rewards/<name>/timeout`, over all guarded rewards of a stage."""
    found = {id(one): one for one in guarded_in(inputs)}
    used = [one for one in found.values() if one.outcomes]
    return {f"rewards/{one.name}/{kind}": float(one.outcomes[kind]) for one in used for kind in KINDS}
