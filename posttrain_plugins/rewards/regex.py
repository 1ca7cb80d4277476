"""`regex`: 1.0 where a pattern is found in the completion; the usual format reward.

Paper: the format reward of DeepSeek-R1 (https://huggingface.co/papers/2501.12948, section 2.2.2), with the pattern left
to you. A pattern with nested repetition can take forever on an odd text: put `timeout_s` on it in the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["Regex"]


@dataclass
class Regex:
    """Look for a pattern in each completion.

    Args:
        pattern: in the syntax of Python's `re`; `(?s)` in front lets `.` match line breaks.
        full_match: the whole completion must match, but for white space around it.

    Raises:
        InputError: for a pattern that does not compile.

    Example:
        >>> Regex("<answer>.+</answer>")(completions=["so <answer>4</answer>", "so 4"])
        [1.0, 0.0]
        >>> Regex("<answer>.+</answer>", full_match=True)(completions=["so <answer>4</answer>"])
        [0.0]
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    example_params: ClassVar[dict[str, Any]] = {"pattern": "<answer>.+</answer>"}

    pattern: str
    full_match: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            message = f"regex cannot compile its pattern: {self.pattern!r}, {error}"
            raise InputError(message, hint="read https://docs.python.org/3/library/re.html") from error

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores, 1.0 or 0.0."""
        # `re` keeps what it has compiled, so nothing is kept here.
        find = re.compile(self.pattern).fullmatch if self.full_match else re.compile(self.pattern).search
        texts = (to_text(completion) for completion in completions)
        return [float(find(text.strip() if self.full_match else text) is not None) for text in texts]
