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
        self.__name__ = "keyword"  # what TRL logs it under
        both = set(self.required) & set(self.forbidden)
        if both:
            raise InputError(f"keyword has a word that is required and forbidden: {sorted(both)[0]!r}")

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Score each completion.

        Args:
            completions: B completions, plain or conversational.
            columns: with `keywords`, B lists of further required words.

        Returns:
            B scores in [0, 1]; None where nothing is required or forbidden.
        """
        more = columns.get("keywords") or [None] * len(completions)
        return [self._score(to_text(text), words) for text, words in zip(completions, more, strict=True)]

    def _score(self, text: str, more: Sequence[str] | None) -> float | None:
        required = [*self.required, *(more or ())]
        if not (required or self.forbidden):
            return None
        if any(self._stands_in(word, text) for word in self.forbidden):
            return 0.0
        return sum(self._stands_in(word, text) for word in required) / len(required) if required else 1.0

    def _stands_in(self, word: str, text: str) -> bool:
        pattern = rf"(?<!\w){re.escape(word)}(?!\w)" if self.is_whole_word else re.escape(word)
        return re.search(pattern, text, re.IGNORECASE if self.ignore_case else 0) is not None
