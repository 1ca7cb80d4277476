"""`length`: 1.0 up to a length, then less and less; against completions that grow without a reason.

Paper: the shape of DAPO's soft overlong punishment (https://huggingface.co/papers/2503.14476, equation 13). We differ:
1. counted in characters, not tokens, so that no tokenizer is needed; 2. from 1.0 down to 0.0 instead of 0 to -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["Length"]


@dataclass
class Length:
    """Prefer completions that keep within a length.

    Args:
        max_chars: up to here a completion scores 1.0.
        decay_chars: over so many characters more, the score falls in a straight line to 0.0; 0 for a hard edge.

    Raises:
        InputError: for a negative length.

    Example:
        >>> Length(max_chars=4, decay_chars=4)(completions=["1234", "123456", "123456789"])
        [1.0, 0.5, 0.0]
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "2+2=?", "completion": "4", "score": 1.0},
        {"prompt": "2+2=?", "completion": "4" * 1200, "score": 0.5},
        {"prompt": "2+2=?", "completion": "4" * 1601, "score": 0.0},
    )

    max_chars: int = 800
    decay_chars: int = 800

    def __post_init__(self) -> None:
        for name in ("max_chars", "decay_chars"):
            if getattr(self, name) < 0:
                message = f"length cannot use {name}: {getattr(self, name)}, expected 0 or more"
                raise InputError(message, hint=f"change {name}")

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]."""
        scores: list[float | None] = []
        for completion in completions:
            excess = len(to_text(completion)) - self.max_chars
            # A straight line, so that each character counts the same: a step would say nothing until it is crossed.
            slope = max(0.0, 1.0 - excess / self.decay_chars) if self.decay_chars else 0.0
            scores.append(1.0 if excess <= 0 else slope)
        return scores
