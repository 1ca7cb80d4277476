"""`soft_overlong`: a penalty that begins a little before the length limit and is full behind it.

Paper: DAPO's soft overlong punishment (https://huggingface.co/papers/2503.14476, equation 13). The parameters have the
names that TRL's `get_soft_overlong_punishment` gives them. We differ: outside a trainer, which gives token ids, tokens
are made by a tokenizer, or words or characters are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.text.units import Unit, split_units
from posttrain_plugins.types import Prompt

__all__ = ["SoftOverlong"]


@dataclass
class SoftOverlong:
    """Punish completions near and above a length.

    Args:
        max_completion_len: from here the punishment is full, -1.0.
        soft_punish_cache: over so many before, it grows from 0.0 in a straight line; 0 for a hard edge.
        unit: what is counted: `tokens`, `words` or `chars`.
        tokenizer: a folder or Hub id, for tokens where no trainer gives them.

    Raises:
        InputError: the two lengths do not go together.

    Example:
        >>> SoftOverlong(max_completion_len=100, soft_punish_cache=20)(["", ""], completion_ids=[[1] * 90, [1] * 101])
        [-0.5, -1.0]
    """

    __name__ = "soft_overlong"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (-1.0, 0.0)
    requires_columns: ClassVar[tuple[str, ...]] = ()
    example_params: ClassVar[dict[str, Any]] = {
        "max_completion_len": 100,
        "soft_punish_cache": 20,
        "unit": "chars",
    }

    max_completion_len: int
    soft_punish_cache: int
    unit: Unit = "tokens"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.soft_punish_cache <= self.max_completion_len:
            message = f"soft_overlong cannot use soft_punish_cache: {self.soft_punish_cache}"
            hint = "what is punished softly lies below the limit"
            raise InputError(f"{message}, expected 0 to max_completion_len: {self.max_completion_len}", hint=hint)

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [-1, 0].

        Args:
            columns: with `completion_ids`, B lists, where tokens are counted in a trainer.
        """
        # 0.0 or less, so that it can be added to any reward of the answer.
        scores: list[float | None] = []
        for units in split_units(completions, columns, self.unit, self.tokenizer):
            excess = len(units) - (self.max_completion_len - self.soft_punish_cache)
            if excess <= 0:
                scores.append(0.0)
            else:  # without a cache every excess is above the limit, so nothing is divided by 0
                is_soft = len(units) <= self.max_completion_len
                scores.append(-excess / self.soft_punish_cache if is_soft else -1.0)
        return scores
