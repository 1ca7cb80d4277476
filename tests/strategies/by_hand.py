"""Strategies worked by hand: their requests, answered one by one, and a model that says what a test has written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.types import Completion, Generate, Problem, Result, SamplingParams, Strategy, Usage

PROBLEM = Problem([{"role": "user", "content": "2+2=?"}], SamplingParams(temperature=0.7, max_tokens=9))
PLAIN = Problem("2+2=?", SamplingParams(temperature=0.7, max_tokens=9))
COMPLETIONS = [Completion(f"so the answer is {answer}") for answer in ("5", "4", "4.0", "3")]
FAILED = Completion("", finish_reason="error", error="oh")


def play_by_hand(strategy: Strategy, responses: Sequence[Any], problem: Problem = PROBLEM) -> tuple[list[Any], Result]:
    """Run a strategy by hand: what it asks for, and its result."""
    steps = strategy(problem)
    asked: list[Any] = [next(steps)]
    for response in responses:
        try:
            asked.append(steps.send(response))
        except StopIteration as stop:
            return asked, stop.value
    raise AssertionError(f"the strategy wants more: {asked[-1]}")


def completions(*texts: str, **more: Any) -> list[Completion]:
    return [Completion(text, **more) for text in texts]


def answers(*digits: Any) -> list[Completion]:
    return completions(*(f"so the answer is {digit}" for digit in digits))


def user_text(request: Generate) -> str:
    """What the user says last."""
    return request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]


@dataclass
class ScriptedModel:
    """Answers with `reply(request, draw)`; `draw` counts the completions of all."""

    reply: Callable[[Generate, int], Completion | str]
    identity: str = "scripted"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(tools=True))
    asked: list[Generate] = field(default_factory=list)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, request in enumerate(batch):
            for j in range(request.n):
                self.asked.append(request)
                reply = self.reply(request, len(self.asked) - 1)
                yield i, j, Completion(reply, usage=Usage(1, 1)) if isinstance(reply, str) else reply
