"""`universal_self_consistency`: sample several completions, and let the model say which is the most consistent one.

Paper: Chen et al., 2023 (https://huggingface.co/papers/2311.17311), section 3. It needs no answer that can be read from
a text, so it also works for summaries and free text.

1. Where the model's choice cannot be read, the answers vote as in `self_consistency`.
2. Completions that are all the same text need no choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from posttrain_plugins.text import ask_about
from posttrain_plugins.text.answers import candidates, choose, majority
from posttrain_plugins.types import Generate, Problem, RequestGenerator, Result

__all__ = ["UniversalSelfConsistency"]

# "Response 2 is" alone would also match what the model says of each response before it chooses.
_CHOICE = re.compile(r"(?:response is|^)\W*(?:response\W*)?(\d+)", re.IGNORECASE)

PROMPT = """These are several responses to one question.

Question: $question

$responses

Evaluate these responses and select the most consistent one, by the consensus of the majority.
Start your answer with "The most consistent response is Response X"."""


@dataclass
class UniversalSelfConsistency:
    """Let the model choose the most consistent of `n` completions.

    Args:
        n: completions per problem, drawn at the problem's own temperature.
        choice_prompt: how the model is asked, at temperature 0; `$question` and `$responses` (counted from 0) are
            filled in. What it writes must say `response is X` or begin with the number.

    Example:
        >>> steps = UniversalSelfConsistency(n=2)(Problem("Name a bird."))
        >>> next(steps).n
        2
        >>> steps.send([Completion("a wren"), Completion("an owl")]).purpose
        'vote'
        >>> try:
        ...     steps.send([Completion("The most consistent response is Response 1.")])
        ... except StopIteration as stop:
        ...     print(stop.value.text)
        an owl
    """

    n: int = 8
    choice_prompt: str = PROMPT

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        among = candidates((yield Generate(problem.prompt, n=self.n, params=problem.params)))
        if len({candidate.text for candidate in among}) < 2:
            return choose(among, 0)
        responses = "\n\n".join(f"Response {i}: {candidate.text}" for i, candidate in enumerate(among))
        prompt = ask_about(problem.prompt, self.choice_prompt, responses=responses)
        verdicts = yield Generate(prompt, params=replace(problem.params, temperature=0.0, stop=()), purpose="vote")
        # The last number that the model names as its choice, if there is such a completion: it may correct itself.
        numbers = [int(number) for number in _CHOICE.findall("".join(verdict.text for verdict in verdicts).strip())]
        chosen = next((number for number in reversed(numbers) if number < len(among)), None)
        return choose(among, majority([candidate.answer for candidate in among]) if chosen is None else chosen)
