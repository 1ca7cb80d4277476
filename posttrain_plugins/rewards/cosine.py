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
from posttrain_plugins.text.answers import equivalent, extract
from posttrain_plugins.text.units import Unit, pieces
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

    example_params: ClassVar[dict[str, Any]] = {"max_len": 100, "unit": "chars", "correct": "length"}

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
        self.__name__ = "cosine"  # what TRL logs it under
        if self.max_len < 1:
            raise InputError(f"cosine cannot use max_len: {self.max_len}, expected 1 or more")

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest of its values."""
        values = [self.max_value_correct, self.min_value_correct, self.min_value_wrong, self.max_value_wrong]
        values += [] if self.exceeded is None else [self.exceeded]
        return min(values), max(values)

    @property
    def requires_columns(self) -> tuple[str, ...]:
        """`solution`, where no other reward says what is right."""
        return ("solution",) if self.correct is None else ()

    @property
    def oracle(self) -> bool:
        """Whether it knows the right answer."""
        return self.correct is None or nested_rewards.any_says([self.correct], "oracle")

    @property
    def holds_model(self) -> bool:
        """Whether the reward that says what is right holds a model."""
        return self.correct is not None and nested_rewards.any_says([self.correct], "holds_model")

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
        if self.correct is None:
            judged = _compared(completions, columns.get("solution"))
        else:
            judged = nested_rewards.scores_of(self.correct, prompts, completions, columns)
        lengths = [len(one) for one in pieces(completions, columns, self.unit, self.tokenizer)]
        pairs = zip(judged, lengths, strict=True)
        return [None if score is None else self._score(score >= self.threshold, length) for score, length in pairs]

    def _score(self, is_right: bool, length: int) -> float:
        if self.exceeded is not None and length >= self.max_len:
            return self.exceeded
        wave = (1 + math.cos(math.pi * min(length / self.max_len, 1.0))) / 2  # from 1 to 0
        short, long = (
            (self.max_value_correct, self.min_value_correct)
            if is_right
            else (self.min_value_wrong, self.max_value_wrong)
        )
        return long + wave * (short - long)


def _compared(completions: Sequence[Prompt], solutions: Sequence[Any] | None) -> list[float | None]:
    if solutions is None:
        raise InputError("cosine has no reward 'correct', and the data no column 'solution'", hint="correct: my_reward")
    found = zip((extract(to_text(completion)) for completion in completions), solutions, strict=True)
    return [
        None if solution is None else float(answer is not None and equivalent(answer, str(solution)))
        for answer, solution in found
    ]
