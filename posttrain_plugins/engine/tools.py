"""Tools: plain functions that a strategy reaches by name, and the JSON schemas that tell a model of them.

A schema is made from the function's signature, its annotations and its docstring (the first paragraph, and the lines
below `Args:`), in the shape of OpenAI's function calling. No paper.

Example:
    >>> def add(a: int, b: int = 0) -> int:
    ...     '''Add two numbers.
    ...
    ...     Args:
    ...         a: the first.
    ...     '''
    ...     return a + b
    >>> schema_of("add", add)["function"]["parameters"]["properties"]
    {'a': {'type': 'integer', 'description': 'the first.'}, 'b': {'type': 'integer'}}
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from posttrain_plugins.errors import InputError
from posttrain_plugins.types import CallTool

__all__ = ["Tool", "Tools", "schema_of", "toolbox", "use"]

Tool: TypeAlias = Callable[..., Any]
Tools: TypeAlias = Mapping[str, Tool] | Iterable[Tool]

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", type(None): "null"}
LISTS = (list, tuple, set, frozenset, Sequence, Iterable)

_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


def toolbox(*sources: Tools | None) -> dict[str, Tool]:
    """All tools by name; of two with one name the later stays.

    Raises:
        InputError: for one that cannot be called.
    """
    box: dict[str, Tool] = {}
    for source in sources:
        pairs = source.items() if isinstance(source, Mapping) else ((_name(tool), tool) for tool in source or ())
        for name, tool in pairs:
            if not callable(tool):
                raise InputError(f"tool {name!r} cannot be called: {tool!r}", hint="give a function")
            box[name] = tool
    return box


def schema_of(name: str, tool: Tool) -> dict[str, Any]:
    """The JSON schema of a function, `{"type": "function", "function": {name, description, parameters}}`."""
    about, arguments = _read(inspect.getdoc(tool) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter, annotation in _parameters(tool):
        properties[parameter.name] = _schema(annotation)
        if parameter.name in arguments:
            properties[parameter.name]["description"] = arguments[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def use(tools: Mapping[str, Tool], request: CallTool) -> str:
    """The plugin boundary of tools: what goes wrong is told to the model, which may try something else."""
    if request.name not in tools:
        return f"error: no tool {request.name!r}, expected one of: {', '.join(sorted(tools)) or 'none'}"
    try:
        return str(tools[request.name](**request.arguments))
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"


def _name(tool: Any) -> str:
    return str(getattr(tool, "__name__", None) or (repr(tool) if isinstance(tool, str) else type(tool).__name__))


def _parameters(tool: Tool) -> Iterator[tuple[inspect.Parameter, Any]]:
    """What can be given by name, with its annotation; a callable without a signature (some builtins) takes nothing."""
    try:
        parameters = inspect.signature(tool).parameters
    except ValueError:
        return
    function = tool if inspect.isroutine(tool) else type(tool).__call__
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        hints = {}
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            yield parameter, hints.get(name, Any)


def _schema(annotation: Any) -> dict[str, Any]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in JSON_TYPES:
        return {"type": JSON_TYPES[annotation]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        known = [_schema(option) for option in inner if option is not type(None)]
        return known[0] if len(known) == 1 else {"anyOf": known}
    if origin in LISTS or annotation in LISTS:
        of = [option for option in inner if option is not Ellipsis]
        return {"type": "array", "items": _schema(of[0]) if of else {}}
    if origin in (dict, Mapping):
        return {"type": "object"}
    return {}


def _read(docstring: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and the arguments that stand below `Args:`, one line each."""
    about = " ".join(docstring.partition("\n\n")[0].split())
    found: dict[str, str] = {}
    name, depth = "", None
    for line in _below_args(docstring):
        depth = _depth(line) if depth is None else depth
        match = _ARGUMENT.fullmatch(line.strip()) if _depth(line) <= depth else None
        if match:
            name, found[match[1]] = match[1], match[2]
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return about, found


def _below_args(docstring: str) -> Iterator[str]:
    is_inside = False
    for line in docstring.splitlines():
        if is_inside and line.strip() and _depth(line) == 0:
            return
        if is_inside and line.strip():
            yield line
        is_inside = is_inside or line.strip() in ("Args:", "Arguments:", "Parameters:")


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
