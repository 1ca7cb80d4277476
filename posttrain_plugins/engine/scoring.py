"""Rewards called on texts, in TRL's signature, with the log as their cache.

What a reward costs stands in the log beside its answers. A reward tells its cost in one of two ways, or not at all:

- `spent`, a `Usage` that it adds to: what it has cost since it was made (a judge that asks an endpoint). Read
  before and after each call; the difference is shared out evenly over what was scored.
- `count_tokens(prompts, completions) -> int`: the tokens that scoring these reads (a model in this process).

A reward that asks somebody else may fail to be told. It lists these `failures`, one reason for each completion; what it
gave for them (None) is not a judgement: it is not logged, and the next run asks again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from posttrain_plugins.engine.keys import prompt_text, score_key
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.errors import PLUGIN_FAILURES, InputError, PluginBroken, RewardFailed
from posttrain_plugins.nested_rewards import wait_for
from posttrain_plugins.plugins.signature import reward_columns
from posttrain_plugins.text import in_format_of, is_conversational
from posttrain_plugins.types import Problem, Prompt, ResolvedReward, Score, ScoreSteps, Usage

__all__ = [
    "Call",
    "ScoreKind",
    "Scored",
    "calls",
    "check_columns",
    "items_of",
    "kind_of",
    "score",
    "score_keys",
    "score_steps",
    "spent_of",
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
    """Score each completion: one call of the reward for all that the log does not know.

    Raises:
        PluginBroken: where the reward raises, or does not give one float or None per completion.
    """
    return _through_log("score", reward, items, log)


def score_steps(reward: ResolvedReward, items: Sequence[Scored], log: RequestLog) -> list[list[float]]:
    """Score each step: `step_scores` on the joined steps; the steps themselves go along as column `steps`.

    Raises:
        InputError: where the reward has no `step_scores`.
        PluginBroken: where it raises, or does not give one list per completion.
    """
    return _through_log("step_scores", reward, items, log)


def score_keys(kind: ScoreKind, reward: ResolvedReward, items: Sequence[Scored]) -> list[str]:
    """Return where the answers stand in the log."""
    # a prompt is written out once for all its completions: of a long one that is most of a key's cost
    prompts = {id(item.prompt): item.prompt for item in items}
    texts = {i: prompt_text(prompt) for i, prompt in prompts.items()}
    return [score_key(kind, reward.name, i.problem, texts[id(i.prompt)], i.text, i.steps) for i in items]


def kind_of(request: Score | ScoreSteps) -> ScoreKind:
    """Return what the log calls the answers to such requests."""
    return "step_scores" if isinstance(request, ScoreSteps) else "score"


def items_of(request: Score | ScoreSteps, problem: Problem, columns: Mapping[str, Any]) -> list[Scored]:
    """Return what a request wants to be scored."""
    if isinstance(request, Score):
        return [Scored(problem.id, request.prompt, text, columns) for text in request.completions]
    return [Scored(problem.id, request.prompt, "".join(steps), columns, tuple(steps)) for steps in request.steps]


def check_columns(reward: ResolvedReward, columns: Collection[str]) -> None:
    """Check that problems have the columns which a scorer needs.

    Raises:
        InputError: with those that they have not.
    """
    missing = [name for name in reward_columns(reward.func) if name not in columns]
    if missing:
        needed = f"scorer '{reward.name}' needs the column{'s' if missing[1:] else ''} {', '.join(missing)}"
        found = f"the problems have {', '.join(columns) or 'none'} beside the prompt"
        raise InputError(f"{needed}: {found}", hint="give it with the problems, or take a scorer without a reference")


def spent_of(reward: ResolvedReward) -> Usage | None:
    """Return what the reward says by itself that it has cost so far, calls included; None where it says nothing."""
    spent = getattr(reward.func, "spent", None)
    return replace(spent) if isinstance(spent, Usage) else None  # a copy: the reward goes on adding to its own


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
        before = spent_of(self.reward), len(_failures(self.reward))
        with _blaming(self.reward):
            values = self._begin()
            found = wait_for(values) if isinstance(values, Awaitable) else values
        self._finish(found, *before)

    async def arun(self) -> None:
        """Call it in an event loop: an async reward is awaited, any other works in a thread."""
        import asyncio

        before = spent_of(self.reward), len(_failures(self.reward))
        with _blaming(self.reward):
            values = await asyncio.to_thread(self._begin)
            found = await values if isinstance(values, Awaitable) else values
        # an answer may be a generator that works while it is read, and the log waits for the disk
        await asyncio.to_thread(self._finish, found, *before)

    def _begin(self) -> Any:
        items = list(self.items.values())
        names = dict.fromkeys(name for item in items for name in item.columns)
        columns: dict[str, Any] = {name: [item.columns.get(name) for item in items] for name in names}
        if items[0].steps:
            columns["steps"] = [list(item.steps) for item in items]
        func: Any = self.reward.func if self.kind == "score" else getattr(self.reward.func, "step_scores")  # noqa: B009
        return func(**{**columns, **_pairs(items)})  # a column named `prompts` must not replace the prompts

    def _finish(self, values: Any, before: Usage | None, failures: int) -> None:
        with _blaming(self.reward):
            answers: list[Any]
            if self.kind == "score":  # None and NaN both mean "cannot judge", as in TRL
                answers = [None if value is None or math.isnan(value) else float(value) for value in values]
            else:
                answers = [[float(value) for value in of_steps] for of_steps in values]
            costs = self._costs(before)
        if len(answers) != len(self.items):
            message = f"reward {self.reward.name!r} gave {len(answers)} scores"
            raise PluginBroken(f"{message}, expected one for each of {len(self.items)}")
        why = next(iter(_failures(self.reward)[failures:]), None)
        for (key, item), answer in zip(self.items.items(), answers, strict=True):
            # Which of the Nones are failures it does not say, and of steps not which of the lists: all are asked again.
            missing = why if answer is None or self.kind == "step_scores" else None
            about = {"kind": self.kind, "scorer": self.reward.name, "problem": item.problem}
            self.log.put(key, answer, costs[key], missing, **about)

    def _costs(self, before: Usage | None) -> dict[str, Usage]:
        """Return what each answer cost; shared out evenly within what was measured together."""
        after = spent_of(self.reward)
        if before is not None and after is not None:
            read, written = (
                after.prompt_tokens - before.prompt_tokens,
                after.completion_tokens - before.completion_tokens,
            )
            total = Usage(read, written, calls=after.calls - before.calls)
            return dict(zip(self.items, _shares(total, len(self.items)), strict=True))
        count: Callable[..., int] | None = getattr(self.reward.func, "count_tokens", None)
        if count is None:
            return dict.fromkeys(self.items, Usage())
        # by problem: each is charged for what was read for it, however the call was put together
        costs: dict[str, Usage] = {}
        for problem in dict.fromkeys(item.problem for item in self.items.values()):
            mine = {key: item for key, item in self.items.items() if item.problem == problem}
            total = Usage(prompt_tokens=int(count(**_pairs(list(mine.values())))))
            costs |= zip(mine, _shares(total, len(mine)), strict=True)
        return costs


def calls(kind: ScoreKind, reward: ResolvedReward, items: Mapping[str, Scored], log: RequestLog) -> Iterator[Call]:
    """Yield the calls that answer what the log does not know: one, or two where only some prompts are conversational.

    Raises:
        InputError: where steps are to be scored by a reward that has no `step_scores`, or a column is not there.
    """
    if kind == "step_scores" and not hasattr(reward.func, "step_scores"):
        raise InputError(f"reward {reward.name!r} cannot score steps: it has no step_scores", hint="name one that has")
    missing = {key: item for key, item in items.items() if key not in log}
    if kind == "score" and missing:
        check_columns(reward, next(iter(missing.values())).columns)
    # TRL's rewards look at the first completion to tell messages from text, so a call holds one kind
    for is_chat in (True, False):
        part = {key: item for key, item in missing.items() if is_conversational(item.prompt) == is_chat}
        if part:
            yield Call(kind, reward, part, log)


def _failures(reward: ResolvedReward) -> list[str]:
    # the judge's own, not the guard's around it: what a guard lets pass, it was told to
    return getattr(getattr(reward.func, "__wrapped__", reward.func), "failures", None) or []


def _through_log(kind: ScoreKind, reward: ResolvedReward, items: Sequence[Scored], log: RequestLog) -> list[Any]:
    keys = score_keys(kind, reward, items)
    for call in calls(kind, reward, dict(zip(keys, items, strict=True)), log):
        call.run()
    return [log[key] for key in keys]


@contextmanager
def _blaming(reward: ResolvedReward) -> Iterator[None]:
    """Name the reward in what it raises: the plugin boundary of rewards."""
    try:
        yield
    except RewardFailed:  # told by its guard, with the reward's name
        raise
    except PLUGIN_FAILURES as error:
        raise PluginBroken(f"reward {reward.name!r} failed: {type(error).__name__}: {error}") from error


def _pairs(items: Sequence[Scored]) -> dict[str, list[Any]]:
    completions = [in_format_of(item.prompt, item.text) for item in items]
    return {"prompts": [item.prompt for item in items], "completions": completions}


def _shares(total: Usage, count: int) -> list[Usage]:
    """Share out a cost over so many answers, in whole numbers that sum up to it."""

    def share(amount: int, i: int) -> int:
        return amount * (i + 1) // count - amount * i // count

    return [
        Usage(share(total.prompt_tokens, i), share(total.completion_tokens, i), calls=share(total.calls, i))
        for i in range(count)
    ]
