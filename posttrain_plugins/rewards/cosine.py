"""`cosine`: right answers are worth more when they are short, wrong ones cost less when they are long.

Paper: Yeo et al., 2025, Demystifying Long Chain-of-Thought Reasoning (https://huggingface.co/papers/2502.03373, section
4.2 and appendix C.1), whose aim is to keep the length of reasoning steady. We differ: 1. the bounds are TRL's; 2. what
is right is said by any reward, by default the comparison with `solution` of `exact_answer`; 3. completions above the
limit get the value at the limit unless `exceeded` says otherwise (the paper's r_e).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins import nested_rewards
from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.text.answers import score_answer
from posttrain_plugins.text.units import Unit, split_units
from posttrain_plugins.types import Prompt, RewardRef

__all__ = ["Cosine"]


@dataclass
class Cosine:
    """Scale right and wrong by length, along half a cosine.

    Args:
        max_len: the length of the schedule, in `unit`.
        correct: a reward that says what is right; without it, the answer is compared with the column `solution`.
        threshold: right is what `correct` gives at least this.
        max_value_correct: right and empty.
        min_value_correct: right at `max_len`.
        min_value_wrong: wrong and empty.
        max_value_wrong: wrong at `max_len`.
        exceeded: of a completion as long as `max_len` or longer, right or wrong.
        unit: what is counted: `tokens`, `words` or `chars`.
        tokenizer: a folder or Hub id, for tokens where no trainer gives them.

    Raises:
        InputError: `max_len` is not above 0.

    Example:
        >>> reward = Cosine(max_len=100)
        >>> texts = ["<answer>4</answer>", "<answer>5</answer>"]
        >>> reward(["?"] * 2, texts, solution=["4", "4"], completion_ids=[[1] * 50] * 2)
        [0.75, -0.75]
    """

    __name__ = "cosine"  # what TRL logs it under
    example_params: ClassVar[dict[str, Any]] = {"max_len": 100, "unit": "chars", "correct": "length"}
    oracle = nested_rewards.any_declares("oracle", "correct", without=True)  # it then reads `solution` itself
    holds_model = nested_rewards.any_declares("holds_model", "correct")

    max_len: int
    correct: RewardRef | None = None
    threshold: float = 0.5
    max_value_correct: float = 1.0
    min_value_correct: float = 0.5
    min_value_wrong: float = -1.0
    max_value_wrong: float = -0.5
    exceeded: float | None = None
    unit: Unit = "tokens"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.max_len < 1:
            raise InputError(f"cosine cannot use max_len: {self.max_len}, expected 1 or more")

    @property
    def bounds(self) -> tuple[float, float]:
        """From the smallest to the largest of its values."""
        values = [self.max_value_correct, self.min_value_correct, self.min_value_wrong, self.max_value_wrong]
        values += [] if self.exceeded is None else [self.exceeded]
        return min(values), max(values)

    @property
    def requires_columns(self) -> tuple[str, ...]:
        """The column `solution`, where no other reward says what is right."""
        return ("solution",) if self.correct is None else ()

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Score each completion.

        Args:
            prompts: B prompts.
            completions: B completions, plain or conversational.
            columns: `solution`, B reference answers, unless another reward says what is right; with `completion_ids`
                where tokens are counted in a trainer.

        Returns:
            B scores; None where it cannot be said what is right.
        """
        solutions = columns.get("solution")
        if self.correct is not None:
            judged = nested_rewards.call_reward(self.correct, prompts, completions, columns)
        elif solutions is not None:
            judged = [
                score_answer(to_text(text), one, prompt=prompt)
                for text, one, prompt in zip(completions, solutions, prompts, strict=True)
            ]
        else:
            message = "cosine has no reward 'correct', and the data no column 'solution'"
            raise InputError(message, hint="correct: my_reward")
        lengths = [len(units) for units in split_units(completions, columns, self.unit, self.tokenizer)]
        pairs = zip(judged, lengths, strict=True)
        return [None if score is None else self._score(score >= self.threshold, length) for score, length in pairs]

    def _score(self, is_right: bool, length: int) -> float:
        if self.exceeded is not None and length >= self.max_len:
            return self.exceeded
        # The two halves run against each other: a right answer loses by length what a wrong one gains, so that a policy
        # thinks longer where it fails and stops where it succeeds (section 4.2).
        short, long = (
            (self.max_value_correct, self.min_value_correct)
            if is_right
            else (self.min_value_wrong, self.max_value_wrong)
        )
        wave = (1 + math.cos(math.pi * min(length / self.max_len, 1.0))) / 2  # from 1 to 0
        return long + wave * (short - long)
