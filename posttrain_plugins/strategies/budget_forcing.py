"""`budget_forcing`: think longer than the model would, or no longer than it may, then answer.

Paper: s1, Muennighoff et al., 2025 (https://huggingface.co/papers/2501.19393), section 3.1: where the model ends its
thinking too early, the end is left out and "Wait" written in its place; where it thinks too long, the end is written
for it, and the answer begun. The backend must go on from a prefill.

1. `min_tokens` may end the waiting before all `waits` are used; without it every one is, as in the paper.
2. `evaluate`, `sample` and `ask` warn where the model's chat template and vocabulary have no such end as `</think>`:
   the paper's model was trained to write it.
3. A completion that ends with an answer, without the tag, is a finished answer; it is not asked for another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrain_plugins.text import prefill
from posttrain_plugins.text.answers import candidates, choose, extract
from posttrain_plugins.types import Candidate, Generate, Problem, RequestGenerator, Result

__all__ = ["BudgetForcing"]


@dataclass
class BudgetForcing:
    """Draw one completion whose thinking has a least and a greatest length.

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

    @property
    def markers(self) -> tuple[str, ...]:
        """What a model has to know for this to work: evaluations tell where its template and vocabulary do not."""
        return (self.end,)

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        thinking = _Thinking(self.start)
        yield from self._think(problem, thinking)
        if thinking.is_answered:
            return _answer_with(thinking.text)
        # "Final Answer:" only where the end was forced: a model that has ended by itself knows that it is to answer.
        written = thinking.text + self.end + (self.final if thinking.is_cut else "")
        found = candidates((yield Generate(prefill(problem.prompt, written), params=problem.params)))
        if not found:
            return _answer_with("" if thinking.text == self.start else thinking.text)
        # The result is all that was written, so that a reward of the format or of the thinking sees what it judges.
        text = written + found[0].text
        return choose([replace(found[0], text=text, answer=extract(text))], 0)

    def _think(self, problem: Problem, thinking: _Thinking) -> RequestGenerator[None]:
        """Fill in the thinking, until `max_tokens` is used up, or the model has ended and need not wait."""
        limit = self.max_tokens or problem.params.max_tokens
        for waited in range(self.waits + 1):
            # The end tag is a stop string, which is never part of the text: to suppress it, one only has to go on.
            stop = (self.end, *problem.params.stop)
            params = replace(problem.params, max_tokens=limit - thinking.num_tokens, stop=stop)
            [drawn] = yield Generate(prefill(problem.prompt, thinking.text), params=params, purpose="step")
            thinking.text += drawn.text
            thinking.num_tokens += drawn.usage.completion_tokens
            thinking.is_cut = drawn.finish_reason in ("length", "error") or thinking.num_tokens >= limit
            ended_by_itself = drawn.finish_reason == "stop" and drawn.stop_reason != self.end
            thinking.is_answered = ended_by_itself and extract(drawn.text) is not None
            is_enough = self.min_tokens is not None and thinking.num_tokens >= self.min_tokens
            if thinking.is_cut or is_enough or waited == self.waits:
                return
            thinking.text += self.wait


@dataclass
class _Thinking:
    """What was thought so far: its text, how many tokens were drawn, how it ended."""

    text: str
    num_tokens: int = 0
    is_cut: bool = False  # at the limit, or because the sample failed
    is_answered: bool = False  # it ended by itself, behind an answer


def _answer_with(text: str) -> Result:
    """Return the result of thinking that was all there could be."""
    return choose([Candidate(text, extract(text))] if text else [], 0)
