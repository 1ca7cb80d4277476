"""Rewards called on texts, in TRL's signature, with the log as their cache.

What a reward costs stands in the log beside its answers. A reward tells its cost in one of two ways, or not at all:

- `spent`, a `Usage` that it adds to: what it has cost since it was made (a judge that asks an endpoint). Read
  before and after each call; the difference is shared out evenly over what was scored.
- `count_tokens(prompts, completions) -> int`: the tokens that scoring these reads (a model in this process).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from posttrain_plugins.engine.keys import prompt_text, score_key
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.errors import InputError, PluginBroken, RewardFailed
from posttrain_plugins.nested_rewards import wait_for
from posttrain_plugins.text import is_conversational
from posttrain_plugins.types import Problem, Prompt, ResolvedReward, Score, ScoreSteps, Usage

__all__ = [
    "Call",
    "ScoreKind",
    "Scored",
    "as_completion",
    "calls",
    "has_spent",
    "items_of",
    "kind_of",
    "score",
    "score_keys",
    "score_steps",
]

ScoreKind: TypeAlias = Literal["score", "step_scores"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion to be scored.

    Args:
        problem: the problem's id; an equal completion of the same problem is scored once.
        prompt: as the data set has it.
        text: the completion.
        columns: the problem's other columns, the reference answer among them.
        steps: the completion's steps, where each is to be scored.
    """

    problem: str
    prompt: Prompt
    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


def score(reward: ResolvedReward, items: Sequence[Scored], log: RequestLog) -> list[float | None]:
    """What each completion is worth: one call of the reward for all that the log does not know.

    Raises:
        PluginBroken: where the reward raises, or does not give one float or None per completion.
    """
    return _through_log("score", reward, items, log)


def score_steps(reward: ResolvedReward, items: Sequence[Scored], log: RequestLog) -> list[list[float]]:
    """What each step is worth: `step_scores` on the joined steps; the steps themselves go along as column `steps`.

    Raises:
        InputError: where the reward has no `step_scores`.
        PluginBroken: where it raises, or does not give one list per completion.
    """
    return _through_log("step_scores", reward, items, log)


def score_keys(kind: ScoreKind, reward: ResolvedReward, items: Sequence[Scored]) -> list[str]:
    """Where the answers stand in the log."""
    prompts = {id(item.prompt): item.prompt for item in items}
    texts = {i: prompt_text(prompt) for i, prompt in prompts.items()}
    return [score_key(kind, reward.name, i.problem, texts[id(i.prompt)], i.text, i.steps) for i in items]


def kind_of(request: Score | ScoreSteps) -> ScoreKind:
    """What the log calls the answers to such requests."""
    return "step_scores" if isinstance(request, ScoreSteps) else "score"


def items_of(request: Score | ScoreSteps, problem: Problem, columns: Mapping[str, Any]) -> list[Scored]:
    """What a request wants to be scored."""
    if isinstance(request, Score):
        return [Scored(problem.id, request.prompt, text, columns) for text in request.completions]
    return [Scored(problem.id, request.prompt, "".join(steps), columns, tuple(steps)) for steps in request.steps]


def as_completion(prompt: Prompt, text: str) -> Any:
    """A completion in the format of its prompt: a message where the prompt is conversational."""
    return [{"role": "assistant", "content": text}] if is_conversational(prompt) else text


def has_spent(reward: ResolvedReward) -> bool:
    """Whether the reward says by itself what it has cost, calls included."""
    return isinstance(getattr(reward.func, "spent", None), Usage)


# --- One call --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of a reward, its answers put into the log.

    Args:
        kind: `score`, or `step_scores`.
        reward: the reward.
        items: key -> completion, all of them conversational or none.
        log: where the answers go.
    """

    kind: ScoreKind
    reward: ResolvedReward
    items: Mapping[str, Scored]
    log: RequestLog

    def run(self) -> None:
        """Call it, and wait."""
        before = self._spent()
        with _blaming(self.reward):
            values = self._begin()
            found = wait_for(values) if isinstance(values, Awaitable) else values
        self._finish(found, before)

    async def arun(self) -> None:
        """The same in an event loop: an async reward is awaited, any other works in a thread."""
        import asyncio

        before = self._spent()
        with _blaming(self.reward):
            values = await asyncio.to_thread(self._begin)
            found = await values if isinstance(values, Awaitable) else values
        await asyncio.to_thread(self._finish, found, before)

    def _begin(self) -> Any:
        items = list(self.items.values())
        func: Any = self.reward.func if self.kind == "score" else getattr(self.reward.func, "step_scores")  # noqa: B009
        return func(**{**_columns(items), **_pairs(items)})

    def _finish(self, values: Any, before: Usage) -> None:
        read: Callable[[Any], Any] = _as_score if self.kind == "score" else _as_steps
        with _blaming(self.reward):
            answers = [read(value) for value in values]
            costs = self._costs(before)
        if len(answers) != len(self.items):
            message = f"reward {self.reward.name!r} gave {len(answers)} scores"
            raise PluginBroken(f"{message}, expected one for each of {len(self.items)}")
        for (key, item), answer in zip(self.items.items(), answers, strict=True):
            self.log.put(key, answer, cost=costs[key], kind=self.kind, scorer=self.reward.name, problem=item.problem)

    def _spent(self) -> Usage:
        spent = getattr(self.reward.func, "spent", None)
        return replace(spent) if isinstance(spent, Usage) else Usage()

    def _costs(self, before: Usage) -> dict[str, Usage]:
        """What each answer cost; shared out evenly within what was measured together."""
        if has_spent(self.reward):
            return dict(zip(self.items, _shares(_difference(self._spent(), before), len(self.items)), strict=True))
        count: Callable[..., int] | None = getattr(self.reward.func, "count_tokens", None)
        if count is None:
            return dict.fromkeys(self.items, Usage())
        costs: dict[str, Usage] = {}
        for problem in dict.fromkeys(item.problem for item in self.items.values()):
            mine = {key: item for key, item in self.items.items() if item.problem == problem}
            total = Usage(prompt_tokens=int(count(**_pairs(list(mine.values())))))
            costs |= zip(mine, _shares(total, len(mine)), strict=True)
        return costs


def calls(kind: ScoreKind, reward: ResolvedReward, items: Mapping[str, Scored], log: RequestLog) -> Iterator[Call]:
    """The calls that answer what the log does not know: one, or two where only some prompts are conversational.

    Raises:
        InputError: where steps are to be scored by a reward that has no `step_scores`.
    """
    if kind == "step_scores" and not hasattr(reward.func, "step_scores"):
        raise InputError(f"reward {reward.name!r} cannot score steps: it has no step_scores", hint="name one that has")
    missing = {key: item for key, item in items.items() if key not in log}
    for is_chat in (True, False):
        part = {key: item for key, item in missing.items() if is_conversational(item.prompt) == is_chat}
        if part:
            yield Call(kind, reward, part, log)


def _through_log(kind: ScoreKind, reward: ResolvedReward, items: Sequence[Scored], log: RequestLog) -> list[Any]:
    keys = score_keys(kind, reward, items)
    for call in calls(kind, reward, dict(zip(keys, items, strict=True)), log):
        call.run()
    return [log[key] for key in keys]


@contextmanager
def _blaming(reward: ResolvedReward) -> Iterator[None]:
    """The plugin boundary of rewards."""
    try:
        yield
    except RewardFailed:  # told by its guard, with the reward's name
        raise
    except Exception as error:
        raise PluginBroken(f"reward {reward.name!r} failed: {type(error).__name__}: {error}") from error


def _pairs(items: Sequence[Scored]) -> dict[str, list[Any]]:
    completions = [as_completion(item.prompt, item.text) for item in items]
    return {"prompts": [item.prompt for item in items], "completions": completions}


def _columns(items: Sequence[Scored]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for item in items for name in item.columns)
    columns = {name: [item.columns.get(name) for item in items] for name in names}
    return columns | ({"steps": [list(item.steps) for item in items]} if items[0].steps else {})


def _difference(after: Usage, before: Usage) -> Usage:
    return Usage(
        after.prompt_tokens - before.prompt_tokens,
        after.completion_tokens - before.completion_tokens,
        calls=after.calls - before.calls,
    )


def _shares(total: Usage, count: int) -> list[Usage]:
    """A cost over so many answers, in whole numbers that sum up to it."""

    def share(amount: int, i: int) -> int:
        return amount * (i + 1) // count - amount * i // count

    return [
        Usage(share(total.prompt_tokens, i), share(total.completion_tokens, i), calls=share(total.calls, i))
        for i in range(count)
    ]


def _as_score(value: Any) -> float | None:
    """None and NaN both mean "cannot judge", as in TRL."""
    return None if value is None or math.isnan(value) else float(value)


def _as_steps(values: Any) -> list[float]:
    return [float(value) for value in values]
