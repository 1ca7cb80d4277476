"""`chain_of_thought`: ask for the steps before the answer, by a phrase or by worked examples.

Papers: Kojima et al., 2022 (https://huggingface.co/papers/2205.11916), zero-shot; Wei et al., 2022
(https://huggingface.co/papers/2201.11903), few-shot.

1. Zero-shot takes one completion, not two: the answer is extracted from it, not asked for again.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain_plugins.text import extend_question
from posttrain_plugins.text.answers import candidates, choose
from posttrain_plugins.types import Completion, Generate, Problem, Prompt, Result

__all__ = ["ChainOfThought"]


@dataclass
class ChainOfThought:
    """Draw one completion that is led to think first.

    Args:
        trigger: the phrase put after the problem; by default the paper's, or none where there are shots.
        shots: worked examples, `{prompt: ..., completion: ...}` each, put before the problem.
        temperature: 0 as in the papers.

    Example:
        >>> next(ChainOfThought()(Problem("2+2=?"))).prompt
        "2+2=?\\nLet's think step by step."
        >>> shots = [{"prompt": "1+1=?", "completion": "one and one make two. 2"}]
        >>> next(ChainOfThought(shots=shots)(Problem("2+2=?"))).prompt
        '1+1=?\\none and one make two. 2\\n\\n2+2=?'
    """

    trigger: str | None = None
    shots: list[Mapping[str, str]] = field(default_factory=list)
    temperature: float = 0.0

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        trigger = self.trigger
        if trigger is None:  # worked examples show the steps, and the few-shot paper has no phrase besides them
            trigger = "" if self.shots else "Let's think step by step."
        # Kojima et al. put the phrase behind "A:", where the model goes on from it; chat templates have no such place.
        prompt = extend_question(problem.prompt, trigger, separator="\n") if trigger else problem.prompt
        asked = _with_shots(prompt, self.shots)
        completions = yield Generate(asked, params=replace(problem.params, temperature=self.temperature))
        return choose(candidates(completions), 0)


def _with_shots(prompt: Prompt, shots: list[Mapping[str, str]]) -> Prompt:
    """Put examples in front of the prompt: as earlier turns, after a system message; in plain text as paragraphs."""
    if isinstance(prompt, str):
        return "".join(f"{shot['prompt']}\n{shot['completion']}\n\n" for shot in shots) + prompt
    first_turn = 1 if prompt[0]["role"] == "system" else 0  # many chat templates take a system message only in front
    turns: list[Mapping[str, Any]] = []
    for shot in shots:
        turns += [{"role": "user", "content": shot["prompt"]}, {"role": "assistant", "content": shot["completion"]}]
    return [*prompt[:first_turn], *turns, *prompt[first_turn:]]
