"""`reasoning_gym`: what the verifier of a Reasoning Gym task gives to the answer in the completion.

Paper: Stojanovski et al., 2025, Reasoning Gym (https://huggingface.co/papers/2505.24760). Goes with the data set
`reasoning_gym`; a task may have many right answers, and many give part of the score to an answer in part right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import importing_extra
from posttrain_plugins.text import to_text
from posttrain_plugins.text.answers import extract
from posttrain_plugins.types import Prompt

__all__ = ["ReasoningGym"]

SUM = '{"question": "2 + 2 =", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}'


@dataclass
class ReasoningGym:
    """Give each answer to its task's own verifier.

    Args:
        exact: 1.0 or nothing, whatever part of the score the verifier gives.

    Raises:
        InputError: reasoning-gym is not installed.
    """

    __name__ = "reasoning_gym"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("entry",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "2 + 2 =", "completion": "<answer>4</answer>", "entry": SUM, "score": 1.0},
        {"prompt": "2 + 2 =", "completion": "<answer>5</answer>", "entry": SUM, "score": 0.0},
        {"prompt": "2 + 2 =", "completion": "", "entry": SUM, "score": 0.0},
    )

    exact: bool = False

    def __call__(
        self,
        completions: Sequence[Prompt],
        entry: Sequence[str | None],
        prompts: Sequence[Prompt] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return B scores in [0, 1]; None where there is no entry.

        Args:
            completions: B completions, plain or conversational.
            prompts: B prompts, which may have opened a thought.
            entry: B entries of the data set `reasoning_gym`; None where there is none.
        """
        if any(one is not None for one in entry):
            with importing_extra("reasoning_gym", "reasoning-gym", "reasoning-gym"):
                from reasoning_gym import get_score_answer_fn
        scores: list[float | None] = []
        begun: Sequence[Prompt | None] = prompts or [None] * len(entry)
        for completion, text, prompt in zip(completions, entry, begun, strict=True):
            if text is None:
                scores.append(None)
                continue
            problem = json.loads(text)
            answer = extract(to_text(completion), prompt=prompt)
            # A verifier reads the whole entry: what is right often follows from how the problem was made.
            verify = get_score_answer_fn(problem["metadata"]["source_dataset"])
            found = 0.0 if answer is None else float(verify(answer, problem))
            # Many verifiers give 0.01 or 0.05 for a wrong answer that can be read, which `exact` takes for 0.
            scores.append(float(found >= 1.0) if self.exact else min(1.0, max(0.0, found)))
        return scores
