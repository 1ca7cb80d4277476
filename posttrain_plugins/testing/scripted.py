"""The scripted model and the scorer that strategies are tried on: no weights, the same answers each time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Completion, Generate, Usage

__all__ = ["CASES", "HashScorer", "ScriptedModel"]

STEPS = 3  # before the answer; more would only make searches longer


def _digit(*parts: Any) -> int:
    # not `hash`: that of a text differs from process to process
    return hashlib.sha256(repr(parts).encode()).digest()[0] % 10


def thinks(request: Generate, seed: int) -> Completion:
    """Answer with three steps and an answer, with one step if a stop string asks for it, with a rating to a judge."""
    if request.purpose not in ("answer", "step"):
        # both forms in which `best_of_n` asks for a judgement: a rating, and a choice between two
        return Completion(f"Thought {_digit(seed)}. Rating: {_digit(seed)}\n[[A]]")
    is_prefilled = not isinstance(request.prompt, str) and request.prompt[-1].get("role") == "assistant"
    prefill = to_text(request.prompt[-1:]) if is_prefilled else ""
    # a search over steps sees its depth in the prefill: after three steps the path comes to an end
    written = sum(prefill.count(mark) for mark in request.params.stop[:1])
    if request.params.stop and written < STEPS:
        return Completion(f"step {_digit(prefill, seed)}", stop_reason=request.params.stop[0])
    # one of three answers, so that a vote has a majority and a minority
    return Completion(f"so <answer>{_digit(prefill, seed) % 3}</answer>")


CASES: dict[str, Callable[[Generate, int], Completion]] = {
    "ordinary": thinks,
    "empty": lambda request, seed: Completion(""),
    "identical": lambda request, seed: Completion("so <answer>4</answer>"),
    "cut off": lambda request, seed: Completion("let me see, first we", finish_reason="length"),
    "failed": lambda request, seed: Completion("", finish_reason="error", error="the server is down"),
    "unicode": lambda request, seed: Completion("\U0001f600\u202e\u0000 答案是四 $x {y} $question"),
}
"""Ways in which a model may answer, by name."""


@dataclass
class ScriptedModel:
    """A backend that answers each request by a function of the request and its seed.

    Args:
        reply: one of `CASES`.
        asked: every request so far.
        identity: its name in the keys of the request log.
        capabilities: what strategies may ask of it.
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
                # at temperature 0 all seeds give one completion, as in a model
                made = self.reply(request, 0 if request.params.temperature == 0 else seed)
                tokens = max(1, len(made.text.split()))
                made.usage = Usage(prompt_tokens=5, completion_tokens=tokens)
                if made.finish_reason != "error":  # a failed completion carries no figures
                    made.logprobs = [-0.5] * tokens if request.params.logprobs else None
                    made.confidences = [2.0] * tokens if request.params.top_logprobs else None
                    made.value = 0.5 if request.params.values else None
                yield i, j, made


class HashScorer:
    """A reward and step scorer: a number in [0, 1) from the text's hash."""

    def __call__(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [_digit(to_text(text)) / 10 for text in completions]

    def step_scores(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> list[list[float]]:
        steps: Sequence[Sequence[str]] = columns.get("steps") or [[to_text(text)] for text in completions]
        return [[_digit(step) / 10 for step in of_one] for of_one in steps]
