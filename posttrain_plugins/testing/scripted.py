"""What strategies are tried on: a model that is a script, a scorer, and one solving of a few problems."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Completion, Generate, Usage

__all__ = ["CASES", "Scorer", "Script"]

STEPS = 3  # before the answer


def _digit(*parts: Any) -> int:
    return hashlib.sha256(repr(parts).encode()).digest()[0] % 10


def thinks(request: Generate, seed: int) -> Completion:
    """Three steps and an answer, then EOS; one step where a stop string asks for it; judgements to judges."""
    if request.purpose not in ("answer", "step"):
        return Completion(f"Thought {_digit(seed)}. Rating: {_digit(seed)}\n[[A]]")
    prefill = to_text(request.prompt[-1:]) if _goes_on(request) else ""
    written = sum(prefill.count(mark) for mark in request.params.stop[:1])
    if request.params.stop and written < STEPS:
        return Completion(f"step {_digit(prefill, seed)}", stop_reason=request.params.stop[0])
    return Completion(f"so <answer>{_digit(prefill, seed) % 3}</answer>")


def _goes_on(request: Generate) -> bool:
    return not isinstance(request.prompt, str) and request.prompt[-1].get("role") == "assistant"


CASES: dict[str, Callable[[Generate, int], Completion]] = {
    "ordinary": thinks,
    "empty": lambda request, seed: Completion(""),
    "identical": lambda request, seed: Completion("so <answer>4</answer>"),
    "cut off": lambda request, seed: Completion("let me see, first we", finish_reason="length"),
    "failed": lambda request, seed: Completion("", finish_reason="error", error="the server is down"),
    "unicode": lambda request, seed: Completion("\U0001f600\u202e\u0000 答案是四 $x {y} $question"),
}
"""What a model may answer, by name."""


@dataclass
class Script:
    """A backend that answers each request by a function of the request and its seed.

    Args:
        reply: one of `CASES`.
        asked: every request so far.
    """

    reply: Callable[[Generate, int], Completion] = thinks
    asked: list[Generate] = field(default_factory=list)
    identity: str = "script"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(values=True, tools=True))

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, request in enumerate(batch):
            self.asked.append(request)
            for j, seed in enumerate(seeds[i]):
                yield i, j, self._completion(request, seed)

    def _completion(self, request: Generate, seed: int) -> Completion:
        made = self.reply(request, 0 if request.params.temperature == 0 else seed)
        made.usage = Usage(prompt_tokens=5, completion_tokens=max(1, len(made.text.split())))
        if made.finish_reason != "error":
            tokens = max(1, len(made.text.split()))
            made.logprobs = [-0.5] * tokens if request.params.logprobs else None
            made.confidences = [2.0] * tokens if request.params.top_logprobs else None
            made.value = 0.5 if request.params.values else None
        return made


class Scorer:
    """A reward and step scorer: a share in [0, 1) of the text's hash."""

    def __call__(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [_digit(to_text(text)) / 10 for text in completions]

    def step_scores(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> list[list[float]]:
        steps: Sequence[Sequence[str]] = columns.get("steps") or [[to_text(text)] for text in completions]
        return [[_digit(step) / 10 for step in of_one] for of_one in steps]
