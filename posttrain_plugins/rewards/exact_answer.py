"""`exact_answer`: 1.0 where the answer that stands in the completion is the reference answer.

No paper; the outcome reward of every verifiable task. It reads the reference, so it is an oracle at test time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.text import to_text
from posttrain_plugins.text.answers import score_answer
from posttrain_plugins.types import Prompt

__all__ = ["ExactAnswer"]


@dataclass
class ExactAnswer:
    """Compare the extracted answer with the column `solution` (extraction and equivalence: `text/answers.py`).

    Example:
        >>> reward = ExactAnswer()
        >>> reward(completions=["<answer>4</answer>", "<answer>5</answer>", "no idea"], solution=["4", "4", "4"])
        [1.0, 0.0, 0.0]
        >>> reward(completions=["<answer>4</answer>"], solution=[None])
        [None]
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("solution",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "2+2=?", "completion": "<answer>4</answer>", "solution": "4", "score": 1.0},
        {"prompt": "2+2=?", "completion": "<answer>5</answer>", "solution": "4", "score": 0.0},
        {"prompt": "2+2=?", "completion": "", "solution": "4", "score": 0.0},
    )

    def __call__(
        self, completions: Sequence[Prompt], solution: Sequence[str | None], **columns: Any
    ) -> list[float | None]:
        """Score each completion.

        Args:
            completions: B completions, plain or conversational.
            solution: B reference answers; None where there is none.

        Returns:
            B scores, 1.0 or 0.0; None where there is no reference to compare with.
        """
        # By the rule that votes and evaluations use: what wins a vote is what is right.
        return [score_answer(to_text(text), reference) for text, reference in zip(completions, solution, strict=True)]
