"""Read and extend prompts and completions, plain or conversational, for rewards, strategies and reports alike.

TRL hands a reward strings when its data set is plain, and lists of messages when it is conversational; a reward that
goes through `to_text` works with both. The functions that extend a prompt return a new one in the same format, so a
strategy need not know which of the two it was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from posttrain_plugins.types import Messages, Prompt

__all__ = [
    "Conversation",
    "ask_about",
    "extend_question",
    "fingerprint",
    "in_format_of",
    "is_conversational",
    "last_user_text",
    "prefill",
    "render",
    "replace_question",
    "to_messages",
    "to_text",
]


class Conversation(str):
    """What a model wrote in all turns of a completion with tools, as one text, with the messages beside it.

    Args:
        messages: of the completion, its first one of role `assistant`.
    """

    messages: list[dict[str, Any]]

    def __new__(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        made = super().__new__(cls, to_text(messages))
        made.messages = [dict(message) for message in messages]
        return made

    def __reduce__(self) -> Any:
        return Conversation, (self.messages,)


# --- Reading ---------------------------------------------------------------------------------------------------------


def is_conversational(value: Any) -> bool:
    """Return True for a list of messages (`role` and `content`), False for plain text."""
    # not `list`: a tuple of messages is conversational too
    return isinstance(value, Sequence) and not isinstance(value, str)


def to_text(value: Prompt) -> str:
    """Return the text of a prompt or completion: a string as it is, messages as their contents joined by newlines.

    Of a completion (its first message is the assistant's) that is what the model wrote: what tools answered is no part
    of it, or a reward would read a tool's number for the model's answer.

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
    is_completion = bool(value) and value[0].get("role") == "assistant"
    said = [message for message in value if not (is_completion and message.get("role") == "tool")]
    texts = [_content_text(message.get("content")) for message in said]
    # a bare call says nothing, and is no empty line of a text
    return "\n".join(text for text, message in zip(texts, said, strict=True) if text or not message.get("tool_calls"))


def in_format_of(prompt: Prompt, completion: Prompt) -> Any:
    """Return a completion in the format of its prompt: messages where that is conversational, else text.

    Messages stay as they are (tool calls, several turns), those of a `Conversation` too; a text becomes one message of
    the assistant.

    Example:
        >>> in_format_of([{"role": "user", "content": "2+2=?"}], "4")
        [{'role': 'assistant', 'content': '4'}]
        >>> in_format_of("2+2=?", [{"role": "assistant", "content": "4"}])
        '4'
    """
    if not is_conversational(prompt):
        return to_text(completion)
    if isinstance(completion, Conversation):
        return completion.messages
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)


def last_user_text(prompt: Prompt) -> str:
    """Return the text of the last user message, or the full prompt where it is plain or has no user message."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message.get("role") == "user":
            return _content_text(message.get("content"))
    return to_text(prompt)


def to_messages(prompt: Prompt) -> Messages:
    """Return the prompt as messages; plain text becomes one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def render(tokenizer: Any, prompt: Prompt, **options: Any) -> str:
    """Return the text that a model reads before it writes: messages through the chat template, text as it is.

    Args:
        tokenizer: a transformers tokenizer; messages need its chat template.
        prompt: a last message of role `assistant` is gone on from.
        **options: what the chat template takes besides, such as `enable_thinking`.
    """
    if isinstance(prompt, str):
        return prompt
    is_prefill = prompt[-1]["role"] == "assistant"
    # The two options exclude each other: with a generation prompt after a prefill, the model would begin a second turn.
    text = tokenizer.apply_chat_template(
        list(prompt), tokenize=False, add_generation_prompt=not is_prefill, continue_final_message=is_prefill, **options
    )
    return str(text)


def fingerprint(prompt: Prompt) -> str:
    """Return 16 hex digits that are equal for equal prompt texts, to find a problem in other data sets."""
    # A lone surrogate, which JSON may hold, cannot be encoded as plain UTF-8; data sets do contain some.
    return hashlib.sha256(last_user_text(prompt).strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _content_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    # images and other blocks have no text and are left out
    return "".join(block.get("text", "") for block in content if isinstance(block, Mapping))


# --- Extending -------------------------------------------------------------------------------------------------------


def prefill(prompt: Prompt, text: str) -> Prompt:
    """Return the prompt with the beginning of its completion, which the model then goes on from.

    Args:
        prompt: a last message of role `assistant` is a prefill already, and is made longer.
        text: what the completion begins with.

    Example:
        >>> prefill([{"role": "user", "content": "2+2=?"}], "It is")[1:]
        [{'role': 'assistant', 'content': 'It is'}]
        >>> prefill([{"role": "assistant", "content": "It "}], "is")
        [{'role': 'assistant', 'content': 'It is'}]
    """
    if isinstance(prompt, str):
        return prompt + text
    if not text:  # an empty assistant message would be a turn of its own, and end at once
        return prompt
    if prompt[-1]["role"] == "assistant":  # two assistant messages in a row are refused by many chat templates
        return [*prompt[:-1], _with_more(prompt[-1], text)]
    return [*prompt, {"role": "assistant", "content": text}]


def extend_question(prompt: Prompt, text: str, separator: str = "\n\n") -> Prompt:
    """Return the prompt with a paragraph at the end of its text or of the user's last message.

    Args:
        prompt: a system message and a prefill stay where they are.
        text: what to add.
        separator: stands between the two.

    Example:
        >>> extend_question("2+2=?", "Think.", separator=" ")
        '2+2=? Think.'
    """
    if isinstance(prompt, str):
        return f"{prompt}{separator}{text}"
    at = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt) - 1)
    return [*prompt[:at], _with_more(prompt[at], separator + text), *prompt[at + 1 :]]


def replace_question(prompt: Prompt, template: str, **fields: str) -> Prompt:
    """Return the prompt with a template in the place of its question: the system message and earlier turns stay.

    Args:
        prompt: its last user message is replaced; what follows it, a prefill, is left out.
        template: `$question` is the text of that message, other `$names` are as given.
        fields: taken literally, whatever dollars they hold.

    Example:
        >>> replace_question([{"role": "user", "content": "2+2=?"}], "$question Is $path right?", path="$4")
        [{'role': 'user', 'content': '2+2=? Is $4 right?'}]
    """
    # safe_substitute: a dollar that names no field stands in many prompts about money or LaTeX
    text = Template(template).safe_substitute(question=last_user_text(prompt), **fields)
    if isinstance(prompt, str):
        return text
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt))
    return [*prompt[:last], {"role": "user", "content": text}]


def ask_about(prompt: Prompt, template: str, **fields: str) -> Prompt:
    """Return a new prompt, in the format of the given one, that asks about a conversation from outside.

    Args:
        prompt: what is asked about.
        template: `$question` is the text of all its messages, other `$names` are as given.
        fields: taken literally, whatever dollars they hold.

    Example:
        >>> ask_about([{"role": "user", "content": "2+2=?"}], "$question Is $answer right?", answer="4")
        [{'role': 'user', 'content': '2+2=? Is 4 right?'}]
    """
    text = Template(template).safe_substitute(question=to_text(prompt), **fields)
    return text if isinstance(prompt, str) else [{"role": "user", "content": text}]


def _with_more(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    content = message.get("content") or ""
    more = content + text if isinstance(content, str) else [*content, {"type": "text", "text": text}]
    return {**message, "content": more}
