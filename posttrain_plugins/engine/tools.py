"""Tools: plain functions that a strategy reaches by name, and the JSON schemas that tell a model of them.

A schema is made from the function's signature, its annotations and its docstring, in the shape of OpenAI's function
calling. Where the function is described in full, it is transformers' own, to the letter: that is what TRL shows a model
in training, and what a model was trained with it should be shown again. No paper.

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
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError, PluginBroken, ToolFailed
from posttrain_plugins.plugins.schema import accepts, type_name
from posttrain_plugins.plugins.tools import faults_of, read_docstring, shape_of
from posttrain_plugins.types import CallTool

__all__ = ["Tool", "Tools", "schema_of", "toolbox", "use"]

Tool: TypeAlias = Callable[..., Any]
Tools: TypeAlias = Mapping[str, Tool] | Iterable[Tool]

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", type(None): "null"}
LISTS = (list, tuple, set, frozenset, Sequence, Iterable)


def toolbox(*sources: Tools | None) -> dict[str, Tool]:
    """Return all tools by name; of two with one name the later stays.

    Raises:
        InputError: for one that cannot be called.
    """
    box: dict[str, Tool] = {}
    for source in sources:
        pairs = source.items() if isinstance(source, Mapping) else ((None, tool) for tool in source or ())
        for given, tool in pairs:
            # a dataclass with `__call__` goes by its class, a text that was given by mistake by itself
            own = getattr(tool, "__name__", None) or (repr(tool) if isinstance(tool, str) else type(tool).__name__)
            name = str(own) if given is None else given
            if not callable(tool):
                raise InputError(f"tool {name!r} cannot be called: {tool!r}", hint="give a function")
            box[name] = tool
    return box


def schema_of(name: str, tool: Tool) -> dict[str, Any]:
    """Return the JSON schema of a function, `{"type": "function", "function": {name, description, parameters}}`.

    Where it returns something that its docstring tells of, transformers adds `return`.
    """
    if inspect.isfunction(tool) and not any(faults_of(name, shape_of(tool))):
        from transformers.utils.chat_template_utils import TypeHintParsingException, get_json_schema

        with suppress(TypeHintParsingException, NameError, TypeError):  # a type of the author's own
            made: dict[str, Any] = get_json_schema(tool)
            return {**made, "function": {**made["function"], "name": name}}
    about, arguments = read_docstring(inspect.getdoc(tool) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter, annotation in _parameters(tool):
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        properties[parameter.name] = _schema(annotation)
        if parameter.name in arguments:
            properties[parameter.name]["description"] = arguments[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def use(tools: Mapping[str, Tool], request: CallTool) -> str:
    """Call a tool; what goes wrong is told to the model, which may try something else: the plugin boundary of tools."""
    if request.name not in tools:
        return f"error: no tool {request.name!r}, expected one of: {', '.join(sorted(tools)) or 'none'}"
    faults = _faults(tools[request.name], request.arguments)
    if faults:
        return f"error: {request.name}: {'; '.join(faults)}"
    try:
        return str(tools[request.name](**request.arguments))
    except (InputError, PluginBroken, ToolFailed):  # it refuses to work at all, or has failed too often
        raise
    except PLUGIN_FAILURES as error:
        return f"error: {type(error).__name__}: {error}"


def _parameters(tool: Tool) -> Iterator[tuple[inspect.Parameter, Any]]:
    """Yield what can be given by name, and `**arguments`, each with its annotation."""
    try:
        found = list(inspect.signature(tool).parameters.values())
    except ValueError:  # some builtins have no signature: they are shown without arguments
        found = []
    try:
        hints = get_type_hints(tool if inspect.isroutine(tool) else type(tool).__call__)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        hints = {}
    for parameter in found:
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            yield parameter, hints.get(parameter.name, Any)


def _faults(tool: Tool, arguments: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the arguments of a call; Python itself would take the text "2" for a number and go on."""
    found = list(_parameters(tool))
    known = {parameter.name: (parameter, kind) for parameter, kind in found if parameter.kind != parameter.VAR_KEYWORD}
    faults = []
    for name, (parameter, annotation) in known.items():
        value = arguments.get(name, parameter.default)
        if value is parameter.empty:
            faults.append(f"{name} is missing")
        elif value is not parameter.default and not accepts(annotation, value):
            faults.append(f"{name} is {value!r:.200}, expected {type_name(annotation)}")
    if len(known) == len(found):  # it takes no `**arguments`
        unknown = [name for name in arguments if name not in known]
        faults += [f"no argument {name!r}, expected one of: {', '.join(known) or 'none'}" for name in unknown]
    return faults


def _schema(annotation: Any) -> dict[str, Any]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in JSON_TYPES:
        return {"type": JSON_TYPES[annotation]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        # None is left out: an argument that may be None may be left out, and models pass "null" as text
        known = [_schema(option) for option in inner if option is not type(None)]
        return known[0] if len(known) == 1 else {"anyOf": known}
    if origin in LISTS or annotation in LISTS:
        of = [option for option in inner if option is not Ellipsis]
        return {"type": "array", "items": _schema(of[0]) if of else {}}
    if origin in (dict, Mapping):
        return {"type": "object"}
    return {}
