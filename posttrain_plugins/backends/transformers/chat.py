"""Between messages and tokens: prompts, prefills and tools through the chat template, tool calls back from the text.

No paper. A prefill is laid verbatim behind the generation prompt. transformers' `continue_final_message` renders it as
a finished turn and cuts behind it; templates of thinking models rewrite that turn (Qwen3's puts an empty thought before
it, and moves or drops a begun one), so the model would go on from what it never wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.training_templates import renders_tool_calls, tool_twin
from posttrain_plugins.text import to_text
from posttrain_plugins.text.actions import read_object
from posttrain_plugins.types import Messages, Prompt

__all__ = ["parse_tool_calls", "render", "show_tools", "takes_tools"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
THINK = "<think>"


def render(tokenizer: Any, prompt: Prompt, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Return the tokens of a prompt.

    Messages go through the chat template, with the options that the policy was trained with
    (`load_tokenizer`); a last message of role `assistant` is gone on from. A tokenizer without a
    template belongs to a base model: it reads a document that starts with BOS (else EOS) and holds the contents, joined
    by an empty line, and a line break. Plain text is tokenised as it is.

    Args:
        tokenizer: the model's.
        prompt: text or messages, those of role `tool` and those with `tool_calls` too.
        tools: JSON schemas of the functions that the model may call.

    Raises:
        InputError: the template refuses the messages, or there are tools and it shows none.
    """
    if tools and (isinstance(prompt, str) or not takes_tools(tokenizer)):
        found = "plain text" if isinstance(prompt, str) else "a chat template that shows no tools"
        raise InputError(f"native tools need messages and a template that takes them: found {found}")
    # what a base model's documents begin with; Qwen's, say, has no BOS and ends each document with EOS
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"]) or [int(start)]  # a forward pass needs a token
    messages, prefill = _split(prompt)
    if tokenizer.chat_template is None:
        text = "\n\n".join(to_text([message]) for message in messages) + "\n"
        return [int(start), *_tokens(tokenizer, text, prefill or "")]
    text = _templated(tokenizer, messages, tools)
    if prefill and text.rstrip().endswith(THINK) and prefill.lstrip().startswith(THINK):
        prefill = prefill.lstrip().removeprefix(THINK).lstrip("\n")  # the template has opened the thought already
    return _tokens(tokenizer, text, prefill or "")


def show_tools(tokenizer: Any) -> Any:
    """Return a tokenizer that shows tools: itself, or a copy with the twin of its ChatML template, else as it renders.

    The tokenizer that was given is left as it is: a trainer saves it with its model.
    """
    template = tokenizer.chat_template
    twin = tool_twin(template) if isinstance(template, str) and not renders_tool_calls(template) else None
    if twin is None:
        return tokenizer
    shown = copy(tokenizer)
    shown.chat_template = twin
    return shown


def takes_tools(tokenizer: Any) -> bool:
    """Return whether the chat template shows the model its tools."""
    template = tokenizer.chat_template
    return "tool_use" in template if isinstance(template, dict) else "tools" in (template or "")


def parse_tool_calls(
    tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], text: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    """Return the text without its tool calls, and these.

    A tokenizer with a `response_template` says itself how its model writes them, and what of the rest is its thoughts,
    which are left out; else they are JSON between `<tool_call>` tags, as Hermes and Qwen write them. A call that cannot
    be read stays in the text.

    Args:
        tokenizer: the model's.
        prompt: the tokens before the completion.
        ids: the completion's tokens.
        text: its text.
        tools: what the model was offered.

    Example:
        >>> class Plain: response_template = None
        >>> text = 'I add.\\n<tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>'
        >>> parse_tool_calls(Plain, [], [], text, [])
        ('I add.', [{'name': 'add', 'arguments': {'a': 1}}])
    """
    template = getattr(tokenizer, "response_template", None)
    if template is not None:
        return _by_template(tokenizer, prompt, ids, text, tools)
    calls: list[dict[str, Any]] = []
    rest, *pieces = text.split(OPEN)
    for piece in pieces:
        inside, closed, behind = piece.partition(CLOSE)
        call = None
        if closed:  # a call that was cut is none, even where it can be read: its arguments may go on
            with suppress(ValueError, RecursionError):
                call = _checked(json.loads(inside))
        if call is None:
            rest += OPEN + piece
        else:
            calls.append(call)
            rest = rest.rstrip() + behind
    return (rest.strip(), calls) if calls else (text, [])


# --- Prompts ---------------------------------------------------------------------------------------------------------


def _split(messages: Messages) -> tuple[list[dict[str, Any]], str | None]:
    """Return the messages before the prefill as templates want them, and the prefill, if there is one."""
    if not messages:
        raise InputError("the prompt has no messages", hint="give at least one of role user")
    *before, last = messages
    if last["role"] != "assistant":
        return [_message(message) for message in messages], None
    if last.get("tool_calls"):
        raise InputError("the last message calls a tool, expected the tool's answer behind it (role tool)")
    return [_message(message) for message in before], to_text([last])


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its tool calls as `{"type": "function", "function": {...}}`, arguments as an object."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):  # as OpenAI's API has them; templates walk through an object
            try:
                arguments = json.loads(arguments)
            except ValueError as cause:
                raise InputError(f"a tool call's arguments are no JSON: {arguments!r}") from cause
        more = call if "function" in call else {}  # its id
        calls.append({**more, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    # content None is what APIs send beside calls, and what most templates cannot join
    return {**message, "content": message.get("content") or "", "tool_calls": calls}


def _templated(tokenizer: Any, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    from jinja2 import TemplateError

    if not messages:
        raise InputError("the prompt has nothing but a prefill", hint="put a message of role user before it")
    shown = [dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools]
    options = {"tokenize": False, "add_generation_prompt": True, **getattr(tokenizer, "chat_template_kwargs", {})}
    try:
        return str(tokenizer.apply_chat_template(messages, tools=shown or None, **options))
    except (TemplateError, TypeError) as cause:
        raise InputError(f"the chat template refuses the messages: {cause}") from cause


def _tokens(tokenizer: Any, text: str, prefill: str) -> list[int]:
    """Return the tokens of both; what is before the prefill keeps its own, as when the prefill was drawn."""
    before = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not prefill:
        return before
    # Together where that changes nothing before the prefill: by itself it may lose a first space, or be cut otherwise.
    whole = list(tokenizer(text + prefill, add_special_tokens=False)["input_ids"])
    if whole[: len(before)] == before:
        return whole
    return before + list(tokenizer(prefill, add_special_tokens=False)["input_ids"])


# --- Tool calls ------------------------------------------------------------------------------------------------------


def _checked(value: Any) -> dict[str, Any] | None:
    """Return a call's name and arguments; None where the value is something else."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    arguments = read_object(function.get("arguments"))  # some models quote them
    return None if arguments is None else {"name": function["name"], "arguments": arguments}


def _by_template(
    tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], text: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    """Read them as transformers does; special tokens are kept for it: some models' delimiters are special."""
    written = tokenizer.decode(list(ids))
    before = tokenizer.decode(list(prompt))
    try:
        message = tokenizer.parse_response(written, prefix=before, tools=[dict(tool) for tool in tools])
    except ValueError:
        return text, []
    calls = [_checked(value) for value in message.get("tool_calls") or ()]
    if not calls or None in calls:
        return text, []
    return str(message.get("content") or "").strip(), [call for call in calls if call is not None]
