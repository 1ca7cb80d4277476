"""`format`: 1.0 where the completion is exactly `<think>...</think><answer>...</answer>`.

Paper: the format reward of DeepSeek-R1 (https://huggingface.co/papers/2501.12948, section 2.2.2). We differ: 1. the
tags are yours; 2. each must stand once and hold something, which one pattern over the whole text does not ask; 3.
`partial` gives the share of the tags that stand once, as Open R1's tag count does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["Format"]


@dataclass
class Format:
    """Look for tags: all of them, once each, in order, with something inside and nothing outside.

    Args:
        tags: their names, in order.
        partial: give the share of opening and closing tags that stand exactly once, instead of all or nothing.
        is_opened: the prompt ends with the first opening tag, as some chat templates have it.

    Raises:
        InputError: there is no tag.

    Example:
        >>> Format()(completions=["<think>2+2</think><answer>4</answer>", "<answer>4</answer>"])
        [1.0, 0.0]
        >>> Format(partial=True)(completions=["<answer>4</answer>"])
        [0.5]
    """

    __name__ = "format"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "2+2=?", "completion": "<think>2+2 is 4</think>\n<answer>4</answer>", "score": 1.0},
        {"prompt": "2+2=?", "completion": "<answer>4</answer>", "score": 0.0},
        {"prompt": "2+2=?", "completion": "<think></think><answer>4</answer>", "score": 0.0},
        {"prompt": "2+2=?", "completion": "<think>a</think><answer>4</answer> and more", "score": 0.0},
        {"prompt": "2+2=?", "completion": "", "score": 0.0},
    )

    tags: list[str] = field(default_factory=lambda: ["think", "answer"])
    partial: bool = False
    is_opened: bool = False

    def __post_init__(self) -> None:
        if not self.tags:
            raise InputError("format has no tags", hint="tags: [think, answer]")

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]."""
        texts = [to_text(completion) for completion in completions]
        return [self._score(f"<{self.tags[0]}>{text}" if self.is_opened else text) for text in texts]

    def _score(self, text: str) -> float:
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        # Counted before they are looked for in order: `partial` gives a policy that has one tag a way to the next.
        once = [text.count(mark) == 1 for mark in marks]
        if self.partial:
            return sum(once) / len(once)
        if not all(once):  # a policy that repeats its answer until one is right would pass a single search
            return 0.0
        for tag in self.tags:
            before, _, rest = text.partition(f"<{tag}>")
            inside, closing, text = rest.partition(f"</{tag}>")
            # `closing` is missing where it stands before its opening tag; an empty thought is the cheapest to learn.
            if before.strip() or not closing or not inside.strip():
                return 0.0
        return float(not text.strip())
