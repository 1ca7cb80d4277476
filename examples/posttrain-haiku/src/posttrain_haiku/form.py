"""`haiku_form`: how much of a text has the form of a haiku. No paper; syllables are counted by groups of vowels."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.text import to_text

FORM = (5, 7, 5)
VOWELS = re.compile(r"[aeiouy]+", re.IGNORECASE)


def syllables(line: str) -> int:
    """Groups of vowels: right for the words of `haikus.py`, near for others."""
    return len(VOWELS.findall(line))


def share_of_form(text: str) -> float:
    """The share of lines that are as they should be, in [0, 1]; lines too many count as wrong."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    right = sum(syllables(line) == wanted for line, wanted in zip(lines, FORM, strict=False))
    return right / max(len(lines), len(FORM))


@dataclass
class HaikuForm:
    """The share of a completion's lines that have 5, 7 and 5 syllables.

    Args:
        strict: 1.0 for a whole haiku and 0.0 for everything else.
    """

    strict: bool = False

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "prompt": "haiku",
            "completion": "an old silent pond\na frog is in the water\nsplash of the water",
            "score": 1.0,
        },
        {"prompt": "haiku", "completion": "a pond and a frog", "score": 1 / 3},
        {"prompt": "haiku", "completion": "pond", "score": 0.0},
    )

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        """One score in [0, 1] for each completion."""
        shares = [share_of_form(to_text(completion)) for completion in completions]
        return [float(share == 1.0) if self.strict else share for share in shares]
