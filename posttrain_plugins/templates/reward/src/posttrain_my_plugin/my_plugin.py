"""`my_plugin`: say here what it rewards, and by which paper."""

from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.text import to_text


@dataclass
class MyPlugin:
    """Scores 1.0 up to `max_chars` characters, then less in a straight line to 0.0 at twice that.

    Args:
        max_chars: the length that is short enough.
    """

    max_chars: int = 48

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ()  # the data set's columns that it reads, such as ("solution",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "2+2=?", "completion": "4", "score": 1.0},
        {"prompt": "2+2=?", "completion": "4" * 96, "score": 0.0},
    )

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        """Return one score for each completion; None if it cannot judge one."""
        return [self.score(to_text(completion)) for completion in completions]

    def score(self, text: str) -> float:
        return min(1.0, max(0.0, 2.0 - len(text) / self.max_chars))
