"""Split completions into tokens, words or characters, which rewards of length and of repetition count.

A trainer gives rewards the tokens it sampled (`completion_ids`); where there is no trainer, a tokenizer makes them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["Unit", "split_units"]

Unit: TypeAlias = Literal["tokens", "words", "chars"]


def split_units(
    completions: Sequence[Prompt], columns: Mapping[str, Any], unit: Unit, tokenizer: str | None = None
) -> list[Sequence[Hashable]]:
    """Split every completion into the units in which it is counted.

    Args:
        completions: B completions, plain or conversational.
        columns: of the reward's call; `completion_ids` among them, B lists, where a trainer calls.
        unit: `tokens`, `words` (in lower case, between white space) or `chars`.
        tokenizer: a folder or Hub id, for tokens where no trainer gives them.

    Raises:
        InputError: for tokens without either.

    Example:
        >>> split_units(["So  so it is"], {}, "words")
        [['so', 'so', 'it', 'is']]
        >>> split_units(["abc"], {"completion_ids": [[7, 8]]}, "tokens")
        [[7, 8]]
    """
    if unit == "chars":
        return [to_text(completion) for completion in completions]
    if unit == "words":
        return [to_text(completion).lower().split() for completion in completions]
    # First the tokens that the trainer sampled: decoded and tokenised again, a text may give others, and the special
    # tokens that `skip_special_tokens` took from the text would not be counted.
    if columns.get("completion_ids") is not None:
        return list(columns["completion_ids"])
    if tokenizer is None:
        raise InputError(
            "a reward counts tokens, but none are given outside a trainer", hint="set unit: words, or name a tokenizer"
        )
    encode = _load_tokenizer(tokenizer)
    return [encode(to_text(completion), add_special_tokens=False)["input_ids"] for completion in completions]


@lru_cache(maxsize=4)  # a recipe has a few rewards, each of them called at every step
def _load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
