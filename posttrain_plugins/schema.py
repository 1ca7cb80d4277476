"""What a plugin or a config class takes, and whether a value fits, without importing what is heavy.

A live object answers with its signature. TRL's and PEFT's config classes, and a user's `./file.py`, answer with their
source: it is parsed with `ast`, following re-exports and base classes from file to file, and never imported.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from posttrain_plugins import types as our_types
from posttrain_plugins.types import ConfigOf, Ref

__all__ = ["Field", "Schema", "accepts", "of_config", "of_object", "of_source", "type_name"]

MISSING = dataclasses.MISSING
REWARD_ARGUMENTS = frozenset(
    {"self", "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)


@dataclass(frozen=True)
class Field:
    """One parameter: its name, type, default, and what the type's annotation says of it."""

    name: str
    type: Any
    default: Any = MISSING
    ref: Ref | None = None
    config: ConfigOf | None = None
    doc: str = ""

    @property
    def is_required(self) -> bool:
        return self.default is MISSING


@dataclass(frozen=True)
class Schema:
    """The parameters of a plugin, and the class attributes that recipes are checked against."""

    fields: Mapping[str, Field]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_open: bool = False  # takes **kwargs
    is_class: bool = True
    doc: str = ""

    def without_fields(self) -> Schema:
        """A plain function that is used as it is takes no parameters from a recipe."""
        return dataclasses.replace(self, fields={}, is_open=False)


def of_object(plugin: Any) -> Schema:
    """The schema of a live plugin: a dataclass's fields, or a function's parameters.

    A function's `params_of = "peft:LoraConfig"` stands for its `**params`.
    """
    hints = _hints(plugin)
    fields = {name: _field(name, hints.get(name, Any), default) for name, default in _parameters(plugin)}
    borrowed = getattr(plugin, "params_of", None)
    if borrowed:
        fields = {**of_config(borrowed).fields, **fields}
    is_open = not borrowed and any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(plugin).parameters.values()
    )
    attributes = {
        name: getattr(plugin, name)
        for name in ("produces", "requires_columns", "columns", "bounds", "oracle", "params_of")
        if hasattr(plugin, name)
    }
    return Schema(fields, attributes, is_open, isinstance(plugin, type), inspect.getdoc(plugin) or "")


def reward_columns(reward: Any) -> tuple[str, ...]:
    """The data-set columns that a reward needs: `requires_columns`, else its arguments without a default."""
    declared = getattr(reward, "requires_columns", None)
    if declared is not None and not isinstance(declared, property):
        return tuple(declared)
    call = reward.__call__ if isinstance(reward, type) or not inspect.isroutine(reward) else reward
    parameters = inspect.signature(call).parameters.values()
    return tuple(
        p.name
        for p in parameters
        if p.name not in REWARD_ARGUMENTS
        and p.default is inspect.Parameter.empty
        and p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    )


# --- from source ---------------------------------------------------------------------------------------------------


@cache
def of_config(target: str) -> Schema:
    """The schema of a dataclass such as `trl:SFTConfig`, read from its source and that of its bases.

    Raises:
        LookupError: the package or the class is not there.
    """
    package, _, name = target.partition(":")
    found = _find_class(_package_file(package), name)
    if found is None:
        raise LookupError(f"no class '{name}' in {package}")
    return Schema(_class_fields(*found))


def of_source(file: Path, attr: str) -> Schema:
    """The schema of a function or dataclass in a `.py` file that must not be imported.

    Raises:
        LookupError: the file defines no such function or class.
        SyntaxError: the file is not Python.
    """
    for node in _parse(file).body:
        if isinstance(node, ast.ClassDef) and node.name == attr:
            attributes = _class_literals(node)
            call = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__call__"), None)
            if call is not None and "requires_columns" not in attributes:
                attributes["reward_columns"] = _required_arguments(call)
            return Schema(_class_fields(file, node), attributes, doc=ast.get_docstring(node) or "")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == attr:
            return Schema(
                dict(_function_fields(node)),
                {"reward_columns": _required_arguments(node)},
                is_open=node.args.kwarg is not None,
                is_class=False,
                doc=ast.get_docstring(node) or "",
            )
    raise LookupError(f"{file.name} defines no function or class '{attr}'")


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def _package_file(package: str) -> Path:
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise LookupError(f"package '{top}' is not installed")
    return _module_file(Path(spec.origin).parent, rest) if rest else Path(spec.origin)


def _module_file(folder: Path, parts: Sequence[str]) -> Path:
    path = folder.joinpath(*parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _find_class(file: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """The class and its file, through `from .module import name` chains (also under TYPE_CHECKING)."""
    tree = _parse(file)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return file, node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            source = _import_source(file, node)
            if source is not None and source.is_file() and source != file:
                original = next(a.name for a in node.names if (a.asname or a.name) == name)
                found = _find_class(source, original)
                if found is not None:
                    return found
    return None


def _import_source(file: Path, node: ast.ImportFrom) -> Path | None:
    parts = node.module.split(".") if node.module else []
    if node.level:
        return _module_file(file.parents[node.level - 1], parts)
    try:
        return _package_file(".".join(parts))
    except LookupError:
        return None


def _class_fields(file: Path, node: ast.ClassDef) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for base in reversed(node.bases):
        found = _find_class(file, base.id) if isinstance(base, ast.Name) else None
        if found is not None:
            fields.update(_class_fields(*found))
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotation = ast.unparse(item.annotation)
            if item.target.id.startswith("_") or "ClassVar" in annotation or "init=False" in _source(item.value):
                continue
            fields[item.target.id] = _field(item.target.id, _evaluate(item.annotation), _default(item.value))
    return fields


def _class_literals(node: ast.ClassDef) -> dict[str, Any]:
    literals = {}
    for item in node.body:
        target = item.target if isinstance(item, ast.AnnAssign) else item.targets[0] if isinstance(item, ast.Assign) else None
        if isinstance(target, ast.Name) and isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
            try:
                literals[target.id] = ast.literal_eval(item.value)
            except ValueError:
                continue
    return literals


def _function_fields(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, Field]]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for arg, value in [
        *zip(positional, [*padding, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]:
        yield arg.arg, _field(arg.arg, _evaluate(arg.annotation), _default(value))


def _required_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    return tuple(n for n, f in _function_fields(node) if f.is_required and n not in REWARD_ARGUMENTS)


def _source(node: ast.expr | None) -> str:
    return ast.unparse(node) if node is not None else ""


def _default(value: ast.expr | None) -> Any:
    if value is None:
        return MISSING
    if isinstance(value, ast.Call) and _source(value.func).endswith("field"):
        given = {k.arg: k.value for k in value.keywords}
        return _default(given["default"]) if "default" in given else None if "default_factory" in given else MISSING
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


class _Names(dict[str, Any]):
    """The names that annotations use; what is not known here accepts anything."""

    def __missing__(self, name: str) -> Any:
        return Any


_NAMES = {
    **{n: getattr(our_types, n) for n in ("ModelRef", "DataRef", "RewardRef", "AdapterRef", "StrategyRef", "ObjectRef")},
    **{n: getattr(typing, n) for n in ("Any", "Literal", "Optional", "Union", "Annotated")},
    **{"List": list, "Dict": dict, "Tuple": tuple, "Set": set, "Sequence": Sequence, "Mapping": Mapping},
    **{t.__name__: t for t in (str, int, float, bool, list, dict, tuple, set, bytes)},
    "ConfigOf": ConfigOf,
    "typing": typing,
}


def _evaluate(annotation: ast.expr | None) -> Any:
    if annotation is None:
        return Any
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    try:
        return eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {"__builtins__": {}}, _Names(_NAMES))
    except (TypeError, AttributeError, SyntaxError):
        return Any


# --- from live objects ---------------------------------------------------------------------------------------------


def _hints(plugin: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(plugin, include_extras=True)
    except (NameError, TypeError):
        return {}


def _parameters(plugin: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(plugin):
        for f in dataclasses.fields(plugin):
            if f.init:
                factory = f.default_factory
                yield f.name, f.default if factory is MISSING else factory()
        return
    for p in inspect.signature(plugin).parameters.values():
        if p.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            yield p.name, MISSING if p.default is inspect.Parameter.empty else p.default


def _field(name: str, annotation: Any, default: Any) -> Field:
    marks = list(_marks(annotation))
    ref = next((m for m in marks if isinstance(m, Ref)), None)
    config = next((m for m in marks if isinstance(m, ConfigOf)), None)
    return Field(name, annotation, default, ref, config)


def _marks(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in typing.get_args(annotation):
        yield from _marks(argument)


# --- values ----------------------------------------------------------------------------------------------------------


def accepts(annotation: Any, value: Any) -> bool:
    """Does a YAML value fit a type? Integers fit `float`; booleans fit only `bool`; unknown types take anything."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return accepts(arguments[0], value)
    if origin in (Union, types.UnionType):
        return any(accepts(argument, value) for argument in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    return _accepts_plain(origin or annotation, arguments, value)


def _accepts_plain(kind: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if kind is None or kind is type(None):
        return value is None
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (str, bool):
        return isinstance(value, kind)
    if _is(kind, Mapping):
        return isinstance(value, Mapping) and all(accepts(arguments[1], v) for v in value.values() if arguments)
    if kind is tuple:
        return isinstance(value, list) and _accepts_tuple(arguments, value)
    if kind in (list, set) or _is(kind, Sequence):
        return isinstance(value, list) and all(accepts(arguments[0], v) for v in value if arguments)
    return True


def _accepts_tuple(arguments: tuple[Any, ...], value: list[Any]) -> bool:
    if not arguments or arguments[-1] is Ellipsis:
        return all(accepts(arguments[0], v) for v in value if arguments)
    return len(arguments) == len(value) and all(map(accepts, arguments, value))


def _is(kind: Any, abstract: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, abstract) and kind is not str


def type_name(annotation: Any) -> str:
    """The type as a person writes it: `int | None`, `'strict' | 'fraction'`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(repr(choice) for choice in arguments)
    if annotation is type(None) or annotation is None:
        return "None"
    if origin is not None:
        inner = ", ".join("..." if a is Ellipsis else type_name(a) for a in arguments)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


