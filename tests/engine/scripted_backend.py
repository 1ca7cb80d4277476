"""Backends that answer from a function, or not at all; a reward that remembers; problems and a strategy for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.types import (
    Completion,
    Generate,
    Problem,
    Result,
    SamplingParams,
    Usage,
)


@dataclass
class Scripted:
    """Answers with `reply(prompt, seed)`, and remembers each call."""

    reply: Callable[[Any, int], str] = lambda prompt, seed: f"<answer>{seed % 1000}</answer>"
    identity: str = "scripted"
    capabilities: Capabilities = field(default_factory=Capabilities)
    calls: list[list[Generate]] = field(default_factory=list)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.calls.append(list(batch))
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            assert request.n == len(of_request)
            for j, seed in enumerate(of_request):
                yield i, j, self.complete(request, seed, j)

    def complete(self, request: Generate, seed: int, j: int) -> Completion:
        """The prompt is read once for all completions of a request, so it counts on the first."""
        text = self.reply(request.prompt, seed)
        if text == "fail":
            return Completion("", finish_reason="error", error="scripted")
        return Completion(text, usage=Usage(prompt_tokens=0 if j else 10, completion_tokens=len(text)))


@dataclass
class Dead:
    """A backend that must not be asked."""

    identity: str = "scripted"
    capabilities: Capabilities = field(default_factory=Capabilities)

    def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
        raise AssertionError("the backend was asked")


@dataclass
class Recorded:
    """A reward that remembers what it was called with; longer is better."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        self.calls.append({"prompts": prompts, "completions": completions, **columns})
        return [float(len(str(completion))) for completion in completions]

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        self.calls.append({"prompts": prompts, "completions": completions, "steps": steps})
        return [[float(len(step)) for step in of_completion] for of_completion in steps]


def problems(count: int = 3, **params: Any) -> list[Problem]:
    return [Problem(f"question {i}", SamplingParams(**params), id=str(i)) for i in range(count)]


def two_waves(problem: Problem) -> Any:
    first = yield Generate(problem.prompt, n=2, params=problem.params)
    second = yield [Generate("again", params=problem.params), Generate(problem.prompt, params=problem.params)]
    among = candidates([*first, *second[0], *second[1]])
    return choose(among, 0)


def texts(results: list[Result]) -> list[list[str]]:
    return [[candidate.text for candidate in result.candidates] for result in results]
