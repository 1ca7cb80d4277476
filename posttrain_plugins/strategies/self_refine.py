"""`self_refine`: answer, criticise the answer, answer better, until there is nothing left to criticise.

Paper: Madaan et al., 2023 (https://huggingface.co/papers/2303.17651), algorithm 1. One model does all three; every
earlier answer and its feedback stay in the conversation.

1. Feedback and refinement are further turns of the conversation, without the paper's worked examples.
2. Of the refinements the last one with an answer counts; with a scorer the one with the best score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.text.answers import candidates, choose, sortable
from posttrain_plugins.types import Candidate, Generate, Problem, Prompt, RequestGenerator, Result, RewardRef, Score

__all__ = ["SelfRefine"]

FEEDBACK_PROMPT = """Check your answer step by step. Name every mistake, and how to mend it.
If there is nothing to mend, write only: NO ISSUES"""

REFINE_PROMPT = "Answer the question again, and better, with this feedback in mind. Give the whole answer."


@dataclass
class SelfRefine:
    """Let the model criticise and mend its own answer, up to `rounds` times.

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

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        among = candidates((yield Generate(problem.prompt, params=problem.params)))  # line 1: y_0
        if not among:
            return choose(among, None)
        try:
            yield from self._refine(problem, among)
            if self.scorer is not None:
                scores = yield Score(problem.prompt, tuple(candidate.text for candidate in among), self.scorer)
                for candidate, score in zip(among, scores, strict=True):
                    candidate.score = score
        except BudgetExhausted:
            pass  # nothing more may be asked: the refined answer stands unscored
        # The best score, and of equal ones the latest answer; a refinement without an answer only comments on itself.
        is_scored = any(candidate.score is not None for candidate in among)
        keys = [(sortable(c.score), is_scored or c.answer is not None, i) for i, c in enumerate(among)]
        return choose(among, max(keys)[-1])

    def _refine(self, problem: Problem, among: list[Candidate]) -> RequestGenerator[None]:
        """Add each better answer to `among`."""
        turns = [among[0].text]
        for _ in range(self.rounds):  # line 2
            turns.append(self.feedback_prompt)
            # A stop string of the answers, such as a step's separator, would cut the feedback short.
            asked = _conversation(problem.prompt, turns)
            criticism = yield Generate(asked, params=replace(problem.params, stop=()), purpose="feedback")
            feedback = "".join(completion.text for completion in criticism)  # line 3: fb_t
            if not feedback.strip() or self.stop in feedback:  # line 4: stop(fb_t, t)
                return
            # Line 7: y_{t+1} = M(p_refine | x | y_0 | fb_0 | ... | y_t | fb_t), with the full history.
            turns += [feedback, self.refine_prompt]
            found = candidates((yield Generate(_conversation(problem.prompt, turns), params=problem.params)))
            if not found:
                return
            turns.append(found[0].text)
            among += found


def _conversation(prompt: Prompt, turns: Sequence[str]) -> Prompt:
    """Return the problem, then assistant and user in turn; in plain text what they say as paragraphs."""
    if isinstance(prompt, str):
        return "\n\n".join([prompt, *turns, ""])
    messages = [
        {"role": role, "content": text} for role, text in zip(cycle(("assistant", "user")), turns, strict=False)
    ]
    if prompt[-1]["role"] == "assistant":  # a prefill: the first turn goes on from it
        messages[0]["content"] = prompt[-1]["content"] + messages[0]["content"]
        prompt = prompt[:-1]
    return [*prompt, *messages]
