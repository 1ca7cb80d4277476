"""`reasoning_gym`: what the verifier of a Reasoning Gym task gives to the answer in the completion.

Paper: Stojanovski et al., 2025, Reasoning Gym (https://huggingface.co/papers/2505.24760). Goes with the data set
`reasoning_gym`; a task may have many right answers, and many give part of the score to an answer in part right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
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

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("entry",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "2 + 2 =", "completion": "<answer>4</answer>", "entry": SUM, "score": 1.0},
        {"prompt": "2 + 2 =", "completion": "<answer>5</answer>", "entry": SUM, "score": 0.0},
        {"prompt": "2 + 2 =", "completion": "", "entry": SUM, "score": 0.0},
    )

    exact: bool = False

    def __post_init__(self) -> None:
        self.__name__ = "reasoning_gym"  # what TRL logs it under

    def __call__(
        self, completions: Sequence[Prompt], entry: Sequence[str | None], **columns: Any
    ) -> list[float | None]:
        """Score each completion.

        Args:
            completions: B completions, plain or conversational.
            entry: B entries of the data set `reasoning_gym`; None where there is none.

        Returns:
            B scores in [0, 1]; None where there is no entry.
        """
        return [self._score(to_text(text), one) for text, one in zip(completions, entry, strict=True)]

    def _score(self, text: str, entry: str | None) -> float | None:
        if entry is None:
            return None
        problem = json.loads(entry)
        answer = extract(text)
        found = 0.0 if answer is None else float(_verifier(problem["metadata"]["source_dataset"])(answer, problem))
        return float(found >= 1.0) if self.exact else min(1.0, max(0.0, found))


def _verifier(task: str) -> Any:
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError as cause:
        hint = "pip install 'posttrain-plugins[reasoning-gym]'"
        raise InputError("reasoning_gym needs reasoning-gym, which is not installed", hint=hint) from cause
    return get_score_answer_fn(task)
