"""`keyword`: words that must stand in a completion, and words that must not.

Paper: IFEval's keyword instructions (https://huggingface.co/papers/2311.07911, table 1: include keywords, forbidden
words). We differ: the share of the wanted words that are there, rather than all or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["Keyword"]


@dataclass
class Keyword:
    """Give the share of the required words that stand in the completion, and nothing where a forbidden one does.

    Args:
        required: words or phrases; the column `keywords` adds to them.
        forbidden: words or phrases.
        is_whole_word: `four` does not stand in `fourteen`.
        ignore_case: `Four` is `four`.

    Raises:
        InputError: the same word is required and forbidden.

    Example:
        >>> Keyword(required=["three", "four"], forbidden=["maybe"])(completions=["three", "Four, three", "maybe four"])
        [0.5, 1.0, 0.0]
    """

    __name__ = "keyword"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "?", "completion": "The sky is blue.", "keywords": ["sky", "blue"], "score": 1.0},
        {"prompt": "?", "completion": "The sky is grey.", "keywords": ["sky", "blue"], "score": 0.5},
        {"prompt": "?", "completion": "", "keywords": ["sky", "blue"], "score": 0.0},
    )

    required: list[str] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)
    is_whole_word: bool = True
    ignore_case: bool = True

    def __post_init__(self) -> None:
        both = set(self.required) & set(self.forbidden)  # with one of these every score would be 0
        if both:
            raise InputError(f"keyword has a word that is required and forbidden: {sorted(both)[0]!r}")

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where nothing is required or forbidden.

        Args:
            columns: with `keywords`, B lists of further required words.
        """
        more = columns.get("keywords") or [None] * len(completions)
        return [self._score(to_text(text), words) for text, words in zip(completions, more, strict=True)]

    def _score(self, text: str, more: Sequence[str] | None) -> float | None:
        required = [*self.required, *(more or ())]
        if not (required or self.forbidden):
            return None
        flags = re.IGNORECASE if self.ignore_case else 0
        # Not `\b`: at the edge of "C++" there is none.
        pattern = r"(?<!\w){}(?!\w)" if self.is_whole_word else "{}"
        stands = {
            word: re.search(pattern.format(re.escape(word)), text, flags) for word in (*required, *self.forbidden)
        }
        if any(stands[word] for word in self.forbidden):  # first: no number of wanted words makes up for it
            return 0.0
        return sum(stands[word] is not None for word in required) / len(required) if required else 1.0
