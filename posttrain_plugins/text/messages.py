"""Conversational or plain, prompts and completions come down to `str` here, for rewards, strategies and reports alike.

TRL hands a reward strings when its data set is plain, and lists of messages when it is conversational; a reward that
goes through `to_text` works with both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_plugins.types import Messages, Prompt

__all__ = ["fingerprint", "is_conversational", "last_user_text", "render", "to_messages", "to_text"]


def is_conversational(value: Any) -> bool:
    """True for a list of messages (`role` and `content`), False for plain text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def to_text(value: Prompt) -> str:
    """The text of a prompt or completion: a string as it is, messages as their contents joined by newlines.

    Args:
        value: a string, or messages with `role` and `content`; content blocks (`[{type: text, text: ...}]`) count too.

    Returns:
        The text; messages without text content (a bare tool call) give the empty string.

    Example:
        >>> to_text([{"role": "assistant", "content": "4"}])
        '4'
        >>> to_text("4")
        '4'
    """
    if isinstance(value, str):
        return value
    return "\n".join(_content_text(message.get("content")) for message in value)


def last_user_text(prompt: Prompt) -> str:
    """The text of the last user message, or the whole prompt where it is plain or has no user message."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message.get("role") == "user":
            return _content_text(message.get("content"))
    return to_text(prompt)


def to_messages(prompt: Prompt) -> Messages:
    """The prompt as messages; plain text becomes one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def render(tokenizer: Any, prompt: Prompt) -> str:
    """The text that a model reads before it writes: messages through the tokenizer's chat template, text as it is.

    Args:
        tokenizer: a transformers tokenizer; messages need its chat template.
        prompt: a last message of role `assistant` is gone on from.
    """
    if isinstance(prompt, str):
        return prompt
    is_prefill = prompt[-1]["role"] == "assistant"
    text = tokenizer.apply_chat_template(
        list(prompt), tokenize=False, add_generation_prompt=not is_prefill, continue_final_message=is_prefill
    )
    return str(text)


def fingerprint(prompt: Prompt) -> str:
    """16 hex digits that are equal for equal prompt texts, to find a problem in other data sets."""
    return hashlib.sha256(last_user_text(prompt).strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _content_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content if isinstance(block, Mapping))
