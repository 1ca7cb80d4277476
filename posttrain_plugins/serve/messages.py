"""Chat messages and tools of a request, in the form that chat templates know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from posttrain_plugins.serve.fields import listed, refused, shown

__all__ = ["read_messages", "read_tools"]

ROLES = ("system", "developer", "user", "assistant", "tool")


def read_messages(value: Any) -> list[dict[str, Any]]:
    """Read messages: text content as one string, `developer` as `system`, the arguments of tool calls as objects.

    Raises:
        ApiError: 400 for anything but messages with text.
    """
    if not isinstance(value, list) or not value:
        raise refused("messages", f"{shown(value)}, expected a list of messages, at least one")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Read the schemas of functions that the model may call.

    Raises:
        ApiError: 400 for anything else.
    """
    tools = listed(value or [], "tools")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type") != "function" or not function.get("name"):
            raise refused(f"tools[{i}]", f"{shown(tool)}, expected {{'type': 'function', 'function': {{'name': ...}}}}")
    return tuple(tools)


def _message(message: Any, where: str) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise refused(where, f"{shown(message)}, expected a message with a role of {', '.join(ROLES)}")
    # No chat template of an open model knows `developer`, which is OpenAI's newer word for `system`.
    read = {"role": "system" if role == "developer" else role, "content": _content(message, where)}
    calls = []
    for call in listed(message.get("tool_calls") or [], where):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise refused(where, "a tool call without the name of a function")
        try:  # JSON text in the protocol, an object in chat templates
            arguments = function.get("arguments") or "{}"
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError as error:
            raise refused(where, f"the arguments of a tool call are not JSON: {error}") from error
        named = {"name": function["name"], "arguments": arguments}
        calls.append({"id": call.get("id"), "type": "function", "function": named})
    if calls:
        read["tool_calls"] = calls
    return read | {name: message[name] for name in ("name", "tool_call_id") if isinstance(message.get(name), str)}


def _content(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return ""  # it only calls tools; some templates fail on a content that is null
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise refused(where, f"content is {shown(content)}, expected text")
    for part in content:  # an image that is left out in silence would make the answer a guess
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise refused(where, f"a part of type {part.get('type')!r}, only text is supported", "unsupported_value")
    return "".join(part["text"] for part in content)
