"""A model that draws from a table and a scorer that reads one, to work a search by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.types import (
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    SamplingParams,
    Strategy,
    Usage,
)

QUESTION = "Q: "
PARAMS = SamplingParams(temperature=0.7, max_tokens=200)
PROBLEM = Problem(QUESTION, PARAMS)


@dataclass
class TableModel:
    """Draws continuations from a table, in the order in which they stand there.

    `steps[path]` are the continuations of a path; one that ends with ";" is a step, another one ends the completion. At
    temperature 0 the first of them is drawn. A token is a character. Judgements are answered by `judge`.
    """

    steps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    judge: Callable[[Generate], str] = lambda request: ""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    identity: str = "script"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(values=True))
    calls: list[list[Generate]] = field(default_factory=list)
    draws: Counter[str] = field(default_factory=Counter)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.calls.append(list(batch))
        for i, request in enumerate(batch):
            for j in range(request.n):
                yield i, j, self.complete(request)

    def complete(self, request: Generate) -> Completion:
        if request.purpose not in ("step", "answer"):
            return Completion(self.judge(request), usage=Usage(completion_tokens=1))
        begun = begun_path(request)
        text, is_over = "", False
        while not is_over:
            options = self.steps[begun + text]
            key = str(request.prompt) + text
            option = options[0 if request.params.temperature == 0 else self.draws[key] % len(options)]
            self.draws[key] += 1
            text += option
            is_over = not option.endswith(";") or ";" in request.params.stop
        return self.cut(request, begun, text)

    def cut(self, request: Generate, begun: str, text: str) -> Completion:
        room = request.params.max_tokens
        is_step = text.endswith(";") and ";" in request.params.stop
        return Completion(
            text[:room].removesuffix(";") if is_step else text[:room],
            finish_reason="length" if len(text) > room else "stop",
            stop_reason=";" if is_step and len(text) <= room else None,
            usage=Usage(prompt_tokens=1, completion_tokens=min(len(text), room)),
            logprobs=[self.logprobs.get(begun + text, -1.0)] if request.params.logprobs else None,
            value=self.values.get(begun + text[:room]) if request.params.values else None,
        )


@dataclass
class TableScorer:
    """A step scorer: the score of a path is the score of its last step."""

    scores: Mapping[str, float | None]
    asked: list[str] = field(default_factory=list)

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        self.asked += texts
        return [self.scores.get(text) for text in texts]

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        rows = [["".join(of[: i + 1]) for i in range(len(of))] for of in steps]
        self.asked += [row[-1] for row in rows]
        return [[score for text in row if (score := self.scores.get(text)) is not None] for row in rows]


def begun_path(request: Generate) -> str:
    """What the completion goes on from."""
    if isinstance(request.prompt, str):
        return request.prompt.partition(QUESTION)[2]
    last = request.prompt[-1]
    return str(last["content"]) if last["role"] == "assistant" else ""


def paths_and_counts(call: Sequence[Generate]) -> list[tuple[str, int]]:
    return [(begun_path(request), request.n) for request in call]


def paths_of_calls(backend: TableModel) -> list[list[tuple[str, int]]]:
    return [paths_and_counts(call) for call in backend.calls]


def solve_one(
    strategy: Strategy,
    backend: TableModel,
    scores: Mapping[str, float | None] | Callable[..., Any] | None = None,
    **options: Any,
) -> Result:
    scorers = {"prm": ResolvedReward("prm", scores if callable(scores) else TableScorer(scores or {}))}
    [result] = solve(strategy, [PROBLEM], backend=backend, scorers=scorers, **options)
    assert result.error is None
    return result


def candidate_texts(result: Result) -> list[str]:
    return [candidate.text for candidate in result.candidates]


def completion(text: str, stop_reason: str | None = None, finish_reason: Any = "stop", tokens: int = 4) -> Completion:
    usage = Usage(completion_tokens=tokens)
    return Completion(text, finish_reason=finish_reason, stop_reason=stop_reason, usage=usage)
