"""What a tool tells a model of itself: its docstring and annotations, of a live object or of a source file.

transformers makes the JSON schema that a model is shown (`get_json_schema`), and TRL calls tools by their names; what
either would refuse in the middle of a run is told here, without importing them. No paper.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain_plugins.plugins.registry import module_file

__all__ = [
    "ToolShape",
    "as_function",
    "environment_faults",
    "faults_of",
    "read_docstring",
    "shape_in",
    "shape_of",
]

Function = ast.FunctionDef | ast.AsyncFunctionDef
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


@dataclass(frozen=True)
class ToolShape:
    """A tool's call.

    Args:
        doc: its docstring.
        arguments: name -> whether it is annotated.
        is_async: whether calling it gives a coroutine.
        is_open: whether it takes `*args` or `**kwargs`.
    """

    doc: str
    arguments: Mapping[str, bool]
    is_async: bool = False
    is_open: bool = False


def shape_of(tool: Any) -> ToolShape:
    """Return the shape of a function, of an object with `__call__`, or of the class of such objects."""
    call = tool if inspect.isroutine(tool) else (tool if isinstance(tool, type) else type(tool)).__call__
    parameters = list(inspect.signature(call).parameters.values())
    if not inspect.isroutine(tool):
        parameters = parameters[1:]  # self
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return ToolShape(
        inspect.getdoc(call) or "",
        {p.name: p.annotation is not p.empty for p in named},
        inspect.iscoroutinefunction(call),
        len(named) < len(parameters),
    )


def shape_in(file: Path, attr: str) -> ToolShape | None:
    """Return the shape of a function or class in a file that is not imported; None where it is not defined there."""
    node = _defined(ast.parse(file.read_bytes()).body, attr)
    is_method = isinstance(node, ast.ClassDef)
    node = _defined(node.body, "__call__") if isinstance(node, ast.ClassDef) else node
    return _shape(node, is_method) if isinstance(node, Function) else None


def environment_faults(target: str) -> list[tuple[str, str]]:
    """Return what TRL would refuse of an environment, and what mends it; nothing of what is no class in its own file.

    Args:
        target: `file.py:attr` or `package.module:attr`; neither is imported.
    """
    head, _, attr = target.rpartition(":")
    file = Path(head) if head.endswith(".py") else module_file(head)
    node = _defined(ast.parse(file.read_bytes()).body, attr) if file is not None and file.is_file() else None
    if not isinstance(node, ast.ClassDef) or node.bases:  # a base may have what is missing
        return []
    methods = {one.name: one for one in node.body if isinstance(one, Function)}
    found = [] if "reset" in methods else [(f"environment '{attr}' has no reset()", "def reset(self, **row)")]
    for name, method in methods.items():
        if name not in ("reset", "get_reward") and not name.startswith("_"):
            # its methods may be coroutines: TRL alone calls them
            found += faults_of(name, replace(_shape(method, True), is_async=False))
    return found


def _defined(body: Sequence[ast.stmt], name: str) -> ast.stmt | None:
    return next((node for node in body if getattr(node, "name", None) == name), None)


def _shape(node: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> ToolShape:
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs][1 if is_method else 0 :]
    return ToolShape(
        ast.get_docstring(node) or "",
        {arg.arg: arg.annotation is not None for arg in named},
        isinstance(node, ast.AsyncFunctionDef),
        given.vararg is not None or given.kwarg is not None,
    )


def faults_of(name: str, shape: ToolShape) -> Iterator[tuple[str, str]]:
    """Yield what keeps a tool from being shown to a model and called, each with what mends it.

    Example:
        >>> list(faults_of("add", ToolShape("Add.", {"a": True})))
        [("tool 'add' does not describe 'a'", 'a line `a: ...` below `Args:` in its docstring')]
    """
    about, described = read_docstring(shape.doc)
    if not about:
        yield f"tool '{name}' has no docstring, which is all that a model is told of it", "say what it does"
    bare = [argument for argument, is_annotated in shape.arguments.items() if not is_annotated]
    if bare:
        yield f"tool '{name}' has arguments without a type: {', '.join(bare)}", f"{bare[0]}: str"
    untold = [argument for argument in shape.arguments if argument not in described]
    if about and untold:
        hint = f"a line `{untold[0]}: ...` below `Args:` in its docstring"
        yield f"tool '{name}' does not describe {', '.join(map(repr, untold))}", hint
    if shape.is_open:
        yield f"tool '{name}' takes *args or **kwargs, which a model cannot be told of", "name each argument"
    if shape.is_async:
        found = f"tool '{name}' is async: each call waits for its answer, in training, sample and evaluate alike"
        yield found, "def in place of async def; asyncio.run inside"


def as_function(name: str, tool: Any, call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a tool as a plain function of that name, the only form that TRL and transformers take.

    Args:
        name: what the model calls it.
        tool: a function, or an object with `__call__`; its signature and docstring are shown.
        call: what is called in its place.
    """
    called = call or tool

    @functools.wraps(tool if inspect.isroutine(tool) else tool.__call__)
    def function(*args: Any, **arguments: Any) -> Any:
        return called(*args, **arguments)

    function.__name__ = function.__qualname__ = name
    return function


def read_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Return the first paragraph, and the arguments that stand below `Args:`, one line each."""
    about = " ".join(docstring.partition("\n\n")[0].split())
    found: dict[str, str] = {}
    name, depth, is_inside = "", None, False
    for line in docstring.splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if is_inside and text:
            if indent == 0:  # the next section
                break
            depth = indent if depth is None else depth
            # what is indented deeper than the first argument goes on with the one above it, colon or not
            match = _ARGUMENT.fullmatch(text) if indent <= depth else None
            if match:
                name, found[match[1]] = match[1], match[2]
            elif name:
                found[name] = f"{found[name]} {text}".strip()
        is_inside = is_inside or text in ("Args:", "Arguments:", "Parameters:")
    return about, found
