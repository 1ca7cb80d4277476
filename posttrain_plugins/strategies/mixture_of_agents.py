"""`mixture_of_agents`: several models propose, in layers that read the layer before, and one model makes the answer.

Paper: Wang et al., 2024 (https://huggingface.co/papers/2406.04692), section 2.2. Without other models the policy's
own samples are the proposals, the paper's single-proposer setting.

1. The proposals stand below the question, in the same message, since not every chat template takes a system message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from string import Template

from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.text import extend_question
from posttrain_plugins.text.answers import candidates, choose, majority
from posttrain_plugins.types import Candidate, Generate, ModelRef, Problem, RequestGenerator, Result

__all__ = ["MixtureOfAgents"]

AGGREGATE_PROMPT = """Below are answers of several models to this question. Some may be biased or wrong: weigh them,
do not copy them. Write one answer of your own that is better than each of them.

$proposals"""


@dataclass
class MixtureOfAgents:
    """Make one answer of the answers of several models.

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

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        among: list[Candidate] = []
        proposals: list[Candidate] = []  # of the newest layer that has any; the newest of `among`
        is_aggregated = False
        roles = [(role, 1) for role in self.proposers] or [("policy", self.n)]
        try:
            for layer in range(1, self.layers + 1):
                asked = roles if layer < self.layers else [(self.aggregator or "policy", 1)]
                # Equation 1: each agent of layer i is given x_1 and all outputs of layer i - 1, joined by the
                # Aggregate-and-Synthesize prompt. The first layer has none; nor has one whose samples all failed.
                numbered = "\n".join(f"{i}. {proposal.text}" for i, proposal in enumerate(proposals, start=1))
                text = Template(self.aggregate_prompt).safe_substitute(proposals=numbered)
                prompt = extend_question(problem.prompt, text) if proposals else problem.prompt
                drawn = yield [Generate(prompt, n=n, params=problem.params, model=role) for role, n in asked]
                found = [candidate for completions in drawn for candidate in candidates(completions)]
                among += found
                is_aggregated = layer == self.layers and bool(found)
                proposals = found or proposals
        except BudgetExhausted:
            if not among:
                raise
        if is_aggregated or not proposals:
            return choose(among, len(among) - 1)
        # Without the aggregator's answer, the majority of the newest proposals has to do.
        return choose(among, len(among) - len(proposals) + (majority([one.answer for one in proposals]) or 0))
