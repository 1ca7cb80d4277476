"""`repetition`: a penalty for saying the same again, by the share of n-grams that stood before.

Paper: Yeo et al., 2025, Demystifying Long Chain-of-Thought Reasoning (https://huggingface.co/papers/2502.03373,
appendix C.2); the parameters have the names that TRL's `get_repetition_penalty_reward` gives them. We differ: 1. words
are counted by default, which need no trainer; 2. the share of the whole completion, not a penalty of single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.text.units import Unit, split_units
from posttrain_plugins.types import Prompt

__all__ = ["Repetition"]


@dataclass
class Repetition:
    """Give `max_penalty` times the share of repeated n-grams.

    Args:
        ngram_size: units in a row.
        max_penalty: the score of nothing but repetition, 0 or less.
        unit: what an n-gram is made of: `tokens`, `words` or `chars`.
        tokenizer: a folder or Hub id, for tokens where no trainer gives them.

    Raises:
        InputError: for a value out of its range.

    Example:
        >>> Repetition(ngram_size=2)(completions=["so it is", "no no no no no"])
        [0.0, -0.75]
    """

    __name__ = "repetition"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "?", "completion": "three and four are seven", "score": 0.0},
        {"prompt": "?", "completion": "", "score": 0.0},
        {"prompt": "?", "completion": "so so so so so so", "score": -0.75},
    )

    ngram_size: int = 3
    max_penalty: float = -1.0
    unit: Unit = "words"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.ngram_size < 1:
            raise InputError(f"repetition cannot use ngram_size: {self.ngram_size}, expected 1 or more")
        if self.max_penalty > 0:
            raise InputError(f"repetition cannot use max_penalty: {self.max_penalty}, expected 0 or less")

    @property
    def bounds(self) -> tuple[float, float]:
        """From `max_penalty` to 0."""
        return self.max_penalty, 0.0

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores from `max_penalty` to 0; 0.0 for a completion shorter than an n-gram.

        Args:
            columns: with `completion_ids`, B lists, where tokens are counted in a trainer.
        """
        scores: list[float | None] = []
        for units in split_units(completions, columns, self.unit, self.tokenizer):
            ngrams = list(zip(*(units[i:] for i in range(self.ngram_size)), strict=False))
            # An n-gram that stands k times counts k - 1 times: the first is no repetition.
            repeated = 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0
            scores.append(repeated * self.max_penalty if repeated else 0.0)  # not -0.0
        return scores
