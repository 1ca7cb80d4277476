"""Completions with tools: each draw of a strategy is a whole conversation, as TRL's loop makes it in training.

A strategy that asks for a completion is given what the model wrote in all of its turns. So `greedy`, votes and best of
n work with tools as they are; one that calls tools by itself (`react`) is left alone. What a model is shown is what it
is shown in training: transformers' schemas, TRL's messages, and TRL's text for a call that failed.

1. TRL counts the tokens of answers against `max_completion_length`; here `max_tokens` is of what the model writes.
2. Out of turns or time, the last call stays unanswered, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain_plugins.engine.tools import schema_of
from posttrain_plugins.errors import PLUGIN_FAILURES, BudgetExhausted, InputError, PluginBroken, ToolFailed
from posttrain_plugins.text import Conversation, is_conversational, to_messages
from posttrain_plugins.text.actions import tool_turn
from posttrain_plugins.types import (
    CallTool,
    Completion,
    Generate,
    Problem,
    Request,
    RequestGenerator,
    Result,
    StageContext,
    Strategy,
    Usage,
)

__all__ = ["ToolLoop", "WithTools", "tool_loop"]


@dataclass(frozen=True)
class ToolLoop:
    """What the policy may call in each of its completions, and how long.

    Args:
        tools: plain functions.
        max_turns: rounds of calls in a conversation; None sets no limit.
        max_seconds: from a conversation's first token on; None sets no limit.
    """

    tools: Sequence[Callable[..., Any]]
    max_turns: int | None = None
    max_seconds: float | None = None

    def around(self, strategy: Strategy) -> Strategy:
        """Return the strategy whose completions are conversations; one that has tools of its own is given these."""
        return strategy if hasattr(strategy, "tools") else WithTools(strategy, self)

    @property
    def told(self) -> dict[str, Callable[..., Any]]:
        """The tools by name; what one raises is its answer, in TRL's words."""
        return {tool.__name__: _told(tool) for tool in self.tools}


@dataclass(frozen=True)
class WithTools:
    """A strategy whose policy calls tools in each of its completions.

    Args:
        strategy: it asks for completions, and knows nothing of tools.
        loop: tools and limits.
    """

    strategy: Strategy
    loop: ToolLoop

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        """Pass everything on but the policy's completions."""
        steps = self.strategy(replace(problem, tools=()))
        send: Callable[[Any], Any] = steps.send
        given: Any = None
        while True:
            try:
                asked = send(given)
            except StopIteration as end:
                result: Result = end.value
                return result
            try:
                send, given = steps.send, (yield from self._answered(asked, problem))
            except BudgetExhausted as spent:
                send, given = steps.throw, spent

    def _answered(self, asked: Request | list[Request], problem: Problem) -> RequestGenerator[Any]:
        """Return the answer to what was asked, in its form."""
        requests = asked if isinstance(asked, list) else [asked]
        mine = {i: one for i, one in enumerate(requests) if isinstance(one, Generate) and _is_plain(one)}
        if not mine:
            return (yield asked)
        # all in one wave, as they were asked for; then the conversations that go on
        offered = {i: replace(one, tools=problem.tools) for i, one in mine.items()}
        first: list[Any] = yield [offered.get(i, one) for i, one in enumerate(requests)]
        talks = {i: [_Talk(one, drawn, self.loop) for drawn in first[i]] for i, one in mine.items()}
        yield from self._go_on([talk for of_one in talks.values() for talk in of_one], problem)
        answers = [[talk.whole() for talk in talks[i]] if i in talks else one for i, one in enumerate(first)]
        return answers if isinstance(asked, list) else answers[0]

    def _go_on(self, talks: Sequence[_Talk], problem: Problem) -> RequestGenerator[None]:
        known = {schema["function"]["name"] for schema in problem.tools}
        while waiting := [talk for talk in talks if talk.may_call()]:
            calls = [call for talk in waiting for call in talk.calls()]
            made = [call for call in calls if call.name in known]
            told = iter((yield [*made]) if made else [])
            for talk in waiting:
                names = [call.name for call in talk.calls()]
                talk.hear([next(told) if n in known else str({"error": f"Tool {n} not found."}) for n in names])
            speaking = [talk for talk in waiting if talk.left() > 0]
            spoken = (yield [talk.request(problem) for talk in speaking]) if speaking else []
            for talk, [completion] in zip(speaking, spoken, strict=True):
                talk.say(completion)


@dataclass
class _Talk:
    """One conversation."""

    asked: Generate
    last: Completion
    loop: ToolLoop
    messages: list[dict[str, Any]] = field(default_factory=list)
    spent: Usage = field(default_factory=Usage)
    turns: int = 0
    is_open: bool = True

    def __post_init__(self) -> None:
        self.start = time.monotonic()
        self.spent = self.last.usage

    def calls(self) -> list[CallTool]:
        return [CallTool(str(call["name"]), dict(call["arguments"])) for call in self.last.tool_calls or ()]

    def may_call(self) -> bool:
        in_time = self.loop.max_seconds is None or time.monotonic() - self.start <= self.loop.max_seconds
        has_turns = self.loop.max_turns is None or self.turns < self.loop.max_turns
        return self.is_open and bool(self.last.tool_calls) and in_time and has_turns

    def hear(self, answers: Sequence[str]) -> None:
        calls = [(call.name, call.arguments) for call in self.calls()]
        self.messages += tool_turn(self.turns, self.last.text, calls, answers)
        self.turns += 1
        self.is_open = self.left() > 0

    def left(self) -> int:
        return self.asked.params.max_tokens - self.spent.completion_tokens

    def request(self, problem: Problem) -> Generate:
        params = replace(self.asked.params, max_tokens=self.left())
        prompt = [*to_messages(self.asked.prompt), *self.messages]
        return replace(self.asked, prompt=prompt, n=1, params=params, tools=problem.tools)

    def say(self, completion: Completion) -> None:
        self.last, self.spent = completion, self.spent + completion.usage

    def whole(self) -> Completion:
        """Return the conversation as one completion."""
        if self.last.finish_reason == "error" or not (self.messages or self.last.tool_calls):
            return self.last
        messages = list(self.messages)
        if self.is_open:  # else the answers of tools stand last: there was no room to go on
            calls = [(call.name, call.arguments) for call in self.calls()]
            messages += tool_turn(self.turns, self.last.text, calls, [])
        return replace(self.last, text=Conversation(messages), usage=self.spent, tool_calls=None)


def tool_loop(context: StageContext, stage: Any) -> ToolLoop | None:
    """Return what a stage's `tools`, `max_tool_calling_iterations` and `max_trajectory_s` say; None without tools.

    Raises:
        InputError: the prompts are no messages.
    """
    tools = context.inputs.get("tools")
    if not tools:
        return None
    if not is_conversational(context.inputs["dataset"][0]["prompt"]):
        hint = "system_prompt: TEXT on the data set makes them so"
        raise InputError(f"stage '{context.stage}' has tools, which need prompts that are messages", hint=hint)
    return ToolLoop(tools, stage.max_tool_calling_iterations, stage.max_trajectory_s)


def _is_plain(request: Generate) -> bool:
    """Does it ask the policy for a completion of messages, from their end, with no tools of its own?"""
    if request.model != "policy" or request.tools or isinstance(request.prompt, str):
        return False
    return bool(request.prompt[-1]["role"] != "assistant")


def _told(tool: Callable[..., Any]) -> Callable[..., Any]:
    def told(**arguments: Any) -> str:
        try:
            return str(tool(**arguments))
        except (InputError, PluginBroken, ToolFailed):
            raise
        except PLUGIN_FAILURES as error:
            return str({"error": str(error)})

    told.schema = schema_of(tool.__name__, tool)  # type: ignore[attr-defined]
    return told
