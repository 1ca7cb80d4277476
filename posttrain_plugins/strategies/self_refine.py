"""`self_refine`: answer, criticise the answer, answer better, until there is nothing left to criticise.

Paper: Madaan et al., 2023 (https://huggingface.co/papers/2303.17651), algorithm 1. One model does all three; every
earlier answer and its feedback stay in the conversation.

1. Feedback and refinement are further turns of the conversation, without the paper's worked examples.
2. Of the refinements the last one with an answer counts; with a scorer the one with the best score.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.text.answers import candidates, choose
from posttrain_plugins.types import Candidate, Completion, Generate, Problem, Prompt, Result, RewardRef, Score

__all__ = ["SelfRefine"]

FEEDBACK_PROMPT = """Check your answer step by step. Name every mistake, and how to mend it.
If there is nothing to mend, write only: NO ISSUES"""

REFINE_PROMPT = "Answer the question again, and better, with this feedback in mind. Give the whole answer."


@dataclass
class SelfRefine:
    """An answer that its own author has criticised and mended, up to `rounds` times.

    Args:
        rounds: refinements at most; the paper's 4.
        scorer: a reward that picks the best of all answers; without one the last counts.
        feedback_prompt: the turn that asks for criticism.
        refine_prompt: the turn that asks for a better answer.
        stop: what the criticism holds when there is nothing to mend, as it is written here.

    Example:
        >>> steps = SelfRefine()(Problem("2+2=?"))
        >>> next(steps).prompt
        '2+2=?'
        >>> print(steps.send([Completion("The answer is 5")]).prompt.splitlines()[2])
        The answer is 5
        >>> steps.send([Completion("2+2 is less than 5.")]).purpose
        'answer'
    """

    rounds: int = 4
    scorer: RewardRef | None = None
    feedback_prompt: str = FEEDBACK_PROMPT
    refine_prompt: str = REFINE_PROMPT
    stop: str = "NO ISSUES"

    def __call__(self, problem: Problem) -> Generator[Generate | Score, Any, Result]:
        among = candidates((yield Generate(problem.prompt, params=problem.params)))
        if not among:
            return choose(among, None)
        try:
            yield from self._refine(problem, among)
        except BudgetExhausted:  # nothing more may be asked, so the refined answer stands unscored
            return choose(among, _latest(among))
        if self.scorer is None:
            return choose(among, _latest(among))
        scores = yield Score(problem.prompt, tuple(candidate.text for candidate in among), self.scorer)
        for candidate, score in zip(among, scores, strict=True):
            candidate.score = score
        return choose(among, _best(among))

    def _refine(self, problem: Problem, among: list[Candidate]) -> Generator[Generate, list[Completion], None]:
        """Adds each better answer to `among`."""
        turns = [among[0].text]
        for _ in range(self.rounds):
            turns.append(self.feedback_prompt)
            criticism = yield _ask(problem, turns, "feedback")
            feedback = "".join(completion.text for completion in criticism)
            if not feedback.strip() or self.stop in feedback:
                return
            turns += [feedback, self.refine_prompt]
            found = candidates((yield _ask(problem, turns, "answer")))
            if not found:
                return
            turns.append(found[0].text)
            among += found


def _ask(problem: Problem, turns: Sequence[str], purpose: str) -> Generate:
    params = problem.params if purpose == "answer" else replace(problem.params, stop=())
    return Generate(_conversation(problem.prompt, turns), params=params, purpose=purpose)


def _conversation(prompt: Prompt, turns: Sequence[str]) -> Prompt:
    """The problem, then assistant and user in turn; in plain text their words as paragraphs."""
    if isinstance(prompt, str):
        return "\n\n".join([prompt, *turns, ""])
    said = [{"role": role, "content": text} for role, text in zip(cycle(("assistant", "user")), turns, strict=False)]
    if prompt[-1]["role"] == "assistant":  # a prefill: the first turn goes on from it
        said[0]["content"] = prompt[-1]["content"] + said[0]["content"]
        prompt = prompt[:-1]
    return [*prompt, *said]


def _latest(among: Sequence[Candidate]) -> int:
    return max((i for i, candidate in enumerate(among) if candidate.answer is not None), default=len(among) - 1)


def _best(among: Sequence[Candidate]) -> int:
    """Of equal scores the latest; without any the latest answer."""
    if all(candidate.score is None for candidate in among):
        return _latest(among)
    scores = [-math.inf if candidate.score is None else candidate.score for candidate in among]
    return max(range(len(among)), key=lambda i: (scores[i], i))
