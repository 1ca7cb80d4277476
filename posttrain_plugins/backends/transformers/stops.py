"""Find stop strings while a completion is drawn. No paper.

Decoding text for every row at every step costs more than a small model's forward pass. A stop string can only have come
to its end with the newest token if that token adds its last character; which characters a token adds is asked of the
tokenizer once. Only then the end of the completion is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["StopStrings", "cut"]

BROKEN = "\ufffd"  # a byte of a character that is not complete


class StopStrings:
    """Tells whether a completion has just written a stop string.

    Args:
        tokenizer: decodes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])[:1]
        self._before = self._decode(self._anchor)
        self._added: dict[int, str] = {}

    def is_hit(self, stops: Sequence[str], token: int, tail: Callable[[int], Sequence[int]]) -> bool:
        """Return whether the newest token has ended one of the stop strings.

        Args:
            stops: an empty one is never met.
            token: the newest one.
            tail: gives so many of the completion's last tokens, or all there are.
        """
        stops = [stop for stop in stops if stop]
        added = self._adds(token)
        # a byte that completes a character adds a text that only the whole shows: then the end is looked at
        if not stops or (BROKEN not in added and not any(stop[-1] in added for stop in stops)):
            return False
        # A token adds a character or more, but for one that is only a byte of a character: hence twice, and a few more.
        text = self._decode(tail(2 * max(map(len, stops)) + 8))
        return any(stop in text for stop in stops)

    def _adds(self, token: int) -> str:
        """Return the text that a token adds; decoded behind another, as some tokenizers take a first space away."""
        if token not in self._added:
            text = self._decode([*self._anchor, token])
            self._added[token] = text[len(self._before) :] if text.startswith(self._before) else text
        return self._added[token]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Return the text before the first stop string, and which one that was.

    Example:
        >>> cut("3+4=7;7*2", (";", "."))
        ('3+4=7', ';')
        >>> cut("3+4=7", (";",))
        ('3+4=7', None)
    """
    at, met = min(((text.find(stop), stop) for stop in stops if stop and stop in text), default=(len(text), None))
    return text[:at], met
