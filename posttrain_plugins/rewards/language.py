"""`language`: the share of the text that is written in the wanted language.

Paper: the language consistency reward of DeepSeek-R1 (https://huggingface.co/papers/2501.12948, section 2.3.2), the
proportion of words in the target language. We differ: `py3langid` tells the language of a line, and a line counts
by its letters, because single words say little and formulas say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError, importing_extra
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["Language"]

# Code, formulas, tags and addresses: the detector names a language for any text, and for these it is a guess.
_NOT_PROSE = re.compile(
    r"```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|`[^`\n]*`|</?\w+>|\\\w+|https?://\S+", re.DOTALL
)


@dataclass
class Language:
    """Judge the language of each line that is long enough to tell; code, formulas and tags do not count.

    Args:
        language: ISO 639-1, such as `en` or `de`; without it, the column `language` has one for each completion.
        min_letters: a line with fewer letters, joined with those after it, is not judged.

    Raises:
        InputError: the language is none that the detector knows, or py3langid is not installed.

    Example:
        >>> Language("en")(completions=["We add the two numbers and get seven.", "7"])
        [1.0, None]
    """

    __name__ = "language"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "?", "completion": "We add the two numbers and get seven.", "language": "en", "score": 1.0},
        {"prompt": "?", "completion": "Wir zählen die beiden Zahlen zusammen.", "language": "en", "score": 0.0},
        {"prompt": "?", "completion": "Wir zählen die beiden Zahlen zusammen.", "language": "de", "score": 1.0},
    )

    language: str | None = None
    min_letters: int = 20

    def __post_init__(self) -> None:
        if self.language is not None and not re.fullmatch("[a-z]{2,3}", self.language):
            message = f"language cannot use language: {self.language!r}, expected ISO 639-1"
            raise InputError(message, hint="such as en, de, zh")

    @property
    def requires_columns(self) -> tuple[str, ...]:
        """The column `language`, where the reward has none of its own."""
        return () if self.language else ("language",)

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B shares of letters in [0, 1]; None where no line is long enough to tell.

        Args:
            columns: `language`, B codes, where the reward has none of its own.
        """
        wanted = [self.language] * len(completions) if self.language else columns.get("language")
        if wanted is None and completions:
            raise InputError("language has no language, and the data no column 'language'", hint="language: en")
        return [self._share(to_text(text), code) for text, code in zip(completions, wanted or (), strict=True)]

    def _share(self, text: str, wanted: str | None) -> float | None:
        if wanted is None:
            return None
        detector, known = _detector()
        if wanted not in known:  # the detector would never find it, and every completion be worth nothing
            raise InputError(f"language does not know {wanted!r}", hint=f"it knows {', '.join(sorted(known))}")
        parts, pending = [], ""
        for line in _NOT_PROSE.sub(" ", text).splitlines():
            pending = f"{pending} {line}".strip()
            if sum(map(str.isalpha, pending)) >= self.min_letters:
                parts.append(pending)
                pending = ""
        if parts and pending:  # too short to be judged alone, and not to be forgotten
            parts[-1] = f"{parts[-1]} {pending}"
        judged = [(sum(map(str.isalpha, part)), detector.classify(part)[0]) for part in parts]
        return sum(n for n, code in judged if code == wanted) / sum(n for n, _ in judged) if judged else None


@cache
def _detector() -> tuple[Any, frozenset[str]]:
    """Return the module that tells languages, which loads its model at its first question, and those it knows."""
    with importing_extra("language", "py3langid", "language"):
        import py3langid
    return py3langid, frozenset(code for code, _ in py3langid.rank("a"))
