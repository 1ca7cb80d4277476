"""English prose that comes with every Python: what a model should read as well after a training as it did before.

The paragraphs are those of `pydoc_data.topics` (standard library), the language reference as `help()` prints it, but
for headings, lists, tables and code. A hash of its text says which split a paragraph is in, so that what replay trains
on is never what is measured. No paper. Another version of Python has other paragraphs: compare within one.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    import datasets

SHORTEST_CHARS, LONGEST_CHARS = 200, 700


@dataclass
class English:
    """Give paragraphs of prose.

    Args:
        split: `train`, `development` (20 % of all paragraphs) or `exam` (20 %).
        part: `texts` have `text`, for `retain`; `continuations` have `prompt`, which asks to go on after the first
            words, and `completion`: what replay mixes with other demonstrations.
        words: words of a paragraph that stand in the prompt.
        max_words: words of a completion, so that no row is much longer than those that it is mixed with.

    Raises:
        InputError: fewer than one word to start from or to go on with.

    Example:
        >>> English("exam")()[0]["text"][:20] != ""
        True
    """

    split: Literal["train", "development", "exam"]
    part: Literal["texts", "continuations"] = "texts"
    words: int = 12
    max_words: int = 32

    example_params: ClassVar[dict[str, Any]] = {"split": "train"}

    def __post_init__(self) -> None:
        if self.words < 1 or self.max_words < 1:
            message = f"english cannot use words {self.words} and max_words {self.max_words}"
            raise InputError(message, hint="words: 12, max_words: 32")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, known without making the data."""
        return ("text",) if self.part == "texts" else ("prompt", "completion")

    def __call__(self) -> datasets.Dataset:
        import datasets

        rows = [text for text in paragraphs() if split_of(text) == self.split]
        if self.part == "texts":
            return datasets.Dataset.from_list([{"text": text} for text in rows])
        return datasets.Dataset.from_list([self._row(text.split()) for text in rows])

    def _row(self, words: list[str]) -> dict[str, Any]:
        asked = "Continue this text: " + " ".join(words[: self.words])
        rest = " ".join(words[self.words : self.words + self.max_words])
        return {"prompt": [{"role": "user", "content": asked}], "completion": [{"role": "assistant", "content": rest}]}


def paragraphs() -> list[str]:
    """Return the paragraphs that are sentences: begun by a capital, ended by a stop, indented by nothing.

    Example:
        >>> all(200 <= len(text) <= 700 for text in paragraphs())
        True
    """
    from pydoc_data.topics import topics

    raw = (part for topic in sorted(topics) for part in topics[topic].split("\n\n"))
    # what is indented or begins with a sign is code, a list, a table or the grammar
    texts = dict.fromkeys(" ".join(part.split()) for part in raw if part[:1].isupper())
    return [text for text in texts if SHORTEST_CHARS <= len(text) <= LONGEST_CHARS and text.endswith(".")]


def split_of(text: str) -> str:
    """Return the split of a paragraph: one in five is `development`, one in five `exam`.

    Example:
        >>> split_of("A paragraph.")
        'train'
    """
    part = zlib.crc32(text.encode()) % 10
    return "exam" if part < 2 else "development" if part < 4 else "train"
