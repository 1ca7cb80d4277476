"""Marks that a strategy waits for, such as `</think>`, and a model that was never taught to write them. No paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["unknown_markers"]

_TAG = re.compile(r"[<\[].*[>\]]", re.DOTALL)


def unknown_markers(strategy: Any, backend: Any) -> Iterator[str]:
    """Yield a warning for each tag of a strategy that the policy's chat template and vocabulary do not have.

    A model writes as a mark what its template shows, or what its vocabulary has as one token. Words, such as
    `Final Answer:`, any model may write; what a server's model knows cannot be asked.

    Args:
        strategy: its `markers` are the texts that it waits for; so are those of the strategy within it.
        backend: the policy's.

    Example:
        >>> class Words:
        ...     chat_template = "{{ messages }}"
        ...     get_vocab = staticmethod(lambda: {"a": 0})
        >>> class Model:
        ...     tokenizer, identity = Words(), "base"
        >>> class Forcing:
        ...     markers = ("</think>",)
        >>> print(*unknown_markers(Forcing(), Model()))
        neither chat template nor vocabulary of 'base' has '</think>', so only the limit of tokens ends its thoughts
    """
    tokenizer = getattr(backend, "tokenizer", None)
    if tokenizer is None:
        return
    inner = vars(strategy).get("strategy")
    wanted = [*getattr(strategy, "markers", ()), *getattr(inner, "markers", ())]
    tags = [marker.strip() for marker in wanted if _TAG.fullmatch(marker.strip())]
    template, vocabulary = str(tokenizer.chat_template or ""), tokenizer.get_vocab() if tags else {}
    for tag in dict.fromkeys(tags):
        if tag not in template and tag not in vocabulary:
            found = f"neither chat template nor vocabulary of '{backend.identity}' has {tag!r}"
            yield f"{found}, so only the limit of tokens ends its thoughts"
