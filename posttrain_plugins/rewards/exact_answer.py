"""`exact_answer`: 1.0 where the answer that is read from the completion equals the reference answer, 0.0 elsewhere.

How answers are read and compared: `docs/answers.md`. No paper; the outcome reward of every verifiable task. It reads
the reference, so it is an oracle at test time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.text import to_text
from posttrain_plugins.text.answers import compare_answer
from posttrain_plugins.text.readers import check_reader, read
from posttrain_plugins.types import Prompt

__all__ = ["ExactAnswer"]


@dataclass
class ExactAnswer:
    r"""Compare the answer of each completion with the column `solution`, a plain answer or a worked solution.

    A completion without an answer that can be read scores 0.0, as a wrong one does; so does one whose thought never
    ended. While a trainer samples, its log has `unread`, the share of completions without an answer.

    Args:
        reader: how answers are read: auto, marked, boxed, tag, last_number, whole, or regex:PATTERN.

    Raises:
        InputError: there is no such reader.

    Example:
        >>> reward = ExactAnswer()
        >>> reward(completions=["<answer>4</answer>", "<answer>5</answer>", "no idea"], solution=["4", "4", "4"])
        [1.0, 0.0, 0.0]
        >>> reward(completions=["<answer>4</answer>"], solution=[None])
        [None]
        >>> ExactAnswer(reader="boxed")(completions=[r"\boxed{4}, not 5", "4"], solution=["4", "4"])
        [1.0, 0.0]
    """

    reader: str = "auto"

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("solution",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "2+2=?", "completion": "<answer>4</answer>", "solution": "4", "score": 1.0},
        {"prompt": "2+2=?", "completion": "<answer>5</answer>", "solution": "4", "score": 0.0},
        {"prompt": "2+2=?", "completion": "", "solution": "4", "score": 0.0},
    )

    def __post_init__(self) -> None:
        check_reader(self.reader)

    def __call__(
        self,
        completions: Sequence[Prompt],
        solution: Sequence[str | None],
        prompts: Sequence[Prompt] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score each completion.

        Args:
            completions: B completions, plain or conversational.
            solution: B reference answers; None where there is none.
            prompts: B prompts, which may have opened a thought that the completion goes on with.

        Returns:
            B scores, 1.0 or 0.0; None where there is no reference to compare with.
        """
        # The rule is that of votes; the reader is the reward's own, so that a stage's `reader` changes no score.
        begun: Sequence[Prompt | None] = prompts or [None] * len(completions)
        texts = list(map(to_text, completions))
        answers = [read(text, self.reader, prompt) for text, prompt in zip(texts, begun, strict=True)]
        if (
            log := columns.get("log_metric")
        ) and answers:  # a trainer's: a reward of 0.0 may be one of how it is written
            log("unread", answers.count(None) / len(answers))
        return [
            compare_answer(answer, text, reference, self.reader, prompt)
            for answer, text, reference, prompt in zip(answers, texts, solution, begun, strict=True)
        ]
