"""`mixture_of_agents`: several models propose, in layers that read the layer before, and one model makes the answer.

Paper: Wang et al., 2024 (https://huggingface.co/papers/2406.04692), section 2.2. Without other models the policy's
own samples are the proposals, the paper's single-proposer setting.

1. The proposals stand below the question, in the same message, since not every chat template takes a system message.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from string import Template

from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.text.answers import candidates, choose, majority
from posttrain_plugins.types import Candidate, Completion, Generate, ModelRef, Problem, Prompt, Result

__all__ = ["MixtureOfAgents"]

AGGREGATE_PROMPT = """Below are answers of several models to this question. Some may be biased or wrong: weigh them,
do not copy them. Write one answer of your own that is better than each of them.

$proposals"""


@dataclass
class MixtureOfAgents:
    """An answer made of the answers of several models.

    Args:
        proposers: the roles that propose, once each per layer; none: the policy, `n` times.
        n: proposals per layer of the policy alone; the paper's 6.
        layers: of them the last one is the aggregator alone; the paper's 3.
        aggregator: the role that makes the answer; the policy by default.
        aggregate_prompt: put below the question from the second layer on; `$proposals`, numbered from 1, is filled in.

    Raises:
        InputError: for less than one layer.

    Example:
        >>> steps = MixtureOfAgents(proposers=["small", "large"], layers=2)(Problem("2+2=?"))
        >>> [request.model for request in next(steps)]
        ['small', 'large']
        >>> [final] = steps.send([[Completion("It is 4")], [Completion("It is 5")]])
        >>> print(final.prompt[-21:], final.model)
        1. It is 4
        2. It is 5 policy
    """

    proposers: list[ModelRef] = field(default_factory=list)
    n: int = 6
    layers: int = 3
    aggregator: ModelRef | None = None
    aggregate_prompt: str = AGGREGATE_PROMPT

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"mixture_of_agents cannot have {self.layers} layers", hint="set layers to 1 or more")

    def __call__(self, problem: Problem) -> Generator[list[Generate], list[list[Completion]], Result]:
        among: list[Candidate] = []
        proposals: list[Candidate] = []
        is_made = False
        roles = [(role, 1) for role in self.proposers] or [("policy", self.n)]
        try:
            for layer in range(1, self.layers + 1):
                asked = roles if layer < self.layers else [(self.aggregator or "policy", 1)]
                prompt = self._prompt(problem.prompt, [proposal.text for proposal in proposals])
                drawn = yield [Generate(prompt, n=n, params=problem.params, model=role) for role, n in asked]
                found = [candidate for completions in drawn for candidate in candidates(completions)]
                among += found
                is_made = layer == self.layers and bool(found)
                proposals = found or proposals
        except BudgetExhausted:
            if not among:
                raise
        return choose(among, len(among) - 1 if is_made else _voted(among, proposals))

    def _prompt(self, prompt: Prompt, texts: Sequence[str]) -> Prompt:
        """The question with the proposals below; as it is where there are none."""
        if not texts:
            return prompt
        numbered = "\n".join(f"{i}. {text}" for i, text in enumerate(texts, start=1))
        return _with_text(prompt, Template(self.aggregate_prompt).safe_substitute(proposals=numbered))


def _voted(among: Sequence[Candidate], proposals: Sequence[Candidate]) -> int | None:
    """Without the aggregator: the majority of the newest proposals."""
    voted = majority([proposal.answer for proposal in proposals])
    return len(among) - len(proposals) + (voted or 0) if proposals else None


def _with_text(prompt: Prompt, text: str) -> Prompt:
    """A paragraph at the end of the text or of the user's last message."""
    if isinstance(prompt, str):
        return f"{prompt}\n\n{text}"
    at = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt) - 1)
    return [*prompt[:at], {**prompt[at], "content": f"{prompt[at]['content']}\n\n{text}"}, *prompt[at + 1 :]]
