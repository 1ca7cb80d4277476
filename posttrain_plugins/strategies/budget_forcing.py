"""`budget_forcing`: think longer than the model would, or no longer than it may, then answer.

Paper: s1, Muennighoff et al., 2025 (https://huggingface.co/papers/2501.19393), section 3.1: where the model ends its
thinking too early, the end is left out and "Wait" written in its place; where it thinks too long, the end is written
for it, and the answer begun. The backend must go on from a prefill.

1. `min_tokens` may end the waiting before all `waits` are used; without it every one is, as in the paper.
2. A completion that ends with an answer, without the tag, is a finished answer; it is not asked for another.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TypeAlias

from posttrain_plugins.text.answers import candidates, choose, extract
from posttrain_plugins.types import Candidate, Completion, Generate, Problem, Prompt, Result

__all__ = ["BudgetForcing"]

Steps: TypeAlias = Generator[Generate, list[Completion], Result]


@dataclass
class BudgetForcing:
    """One completion whose thinking has a least and a greatest length.

    Args:
        waits: how often the thinking is prolonged at most; the paper tries 2, 4 and 6.
        min_tokens: thinking of so many tokens is prolonged no more; by default all waits are used.
        max_tokens: tokens of thinking at most; the problem's own limit by default, which the answer has to itself.
        start: what opens the thinking, where the chat template does not.
        end: what closes it.
        wait: written in the place of an end that comes too early.
        final: written behind an end that is forced, to begin the answer.

    Example:
        >>> steps = BudgetForcing(waits=1)(Problem("2+2=?"))
        >>> next(steps).params.stop
        ('</think>',)
        >>> print(steps.send([Completion("It is 5.", stop_reason="</think>")]).prompt)
        2+2=?It is 5.
        Wait
        >>> steps.send([Completion(", it is 4.", stop_reason="</think>")]).prompt.endswith("it is 4.</think>")
        True
    """

    waits: int = 2
    min_tokens: int | None = None
    max_tokens: int | None = None
    start: str = ""
    end: str = "</think>"
    wait: str = "\nWait"
    final: str = "\nFinal Answer:"

    def __call__(self, problem: Problem) -> Steps:
        thought = _Thought(self.start)
        yield from self._think(problem, thought)
        if thought.is_answered:
            return _stand_on(thought.text)
        written = thought.text + self.end + (self.final if thought.is_cut else "")
        found = candidates((yield Generate(_prefilled(problem.prompt, written), params=problem.params)))
        if not found:
            return _stand_on("" if thought.text == self.start else thought.text)
        text = written + found[0].text
        return choose([replace(found[0], text=text, answer=extract(text))], 0)

    def _think(self, problem: Problem, thought: _Thought) -> Generator[Generate, list[Completion], None]:
        """Fills in `thought`; `max_tokens` is over, or the model has ended and need not wait."""
        limit = self.max_tokens or problem.params.max_tokens
        for waited in range(self.waits + 1):
            room = limit - thought.tokens
            params = replace(problem.params, max_tokens=room, stop=(self.end, *problem.params.stop))
            [drawn] = yield Generate(_prefilled(problem.prompt, thought.text), params=params, purpose="step")
            thought.add(drawn, self.end)
            thought.is_cut |= thought.tokens >= limit
            is_enough = self.min_tokens is not None and thought.tokens >= self.min_tokens
            if thought.is_cut or is_enough or waited == self.waits:
                return
            thought.text += self.wait


@dataclass
class _Thought:
    """What was thought so far: its text, how many tokens were drawn, how it ended."""

    text: str
    tokens: int = 0
    is_cut: bool = False  # at the limit, or because the sample failed
    is_answered: bool = False  # it ended by itself, behind an answer

    def add(self, drawn: Completion, end: str) -> None:
        self.text += drawn.text
        self.tokens += drawn.usage.completion_tokens
        self.is_cut = drawn.finish_reason in ("length", "error")
        ended = drawn.finish_reason == "stop" and drawn.stop_reason != end
        self.is_answered = ended and extract(drawn.text) is not None


def _prefilled(prompt: Prompt, text: str) -> Prompt:
    """The problem with the beginning of its completion, to be gone on from."""
    if isinstance(prompt, str):
        return prompt + text
    if not text:
        return prompt
    if prompt[-1]["role"] == "assistant":
        return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + text}]
    return [*prompt, {"role": "assistant", "content": text}]


def _stand_on(text: str) -> Result:
    """The result of a text that is no completion to choose from: thinking that was all there could be."""
    return choose([Candidate(text, extract(text))] if text else [], 0)
