"""What a plugin or a config class takes, read from its source.

TRL's and PEFT's config classes, and a user's `./file.py`, are parsed with `ast`, following re-exports and base classes
from file to file, and never imported.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import importlib.util
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from posttrain_plugins import types as our_types
from posttrain_plugins.plugins.declarations import DECLARATIONS
from posttrain_plugins.plugins.schema import MISSING, REWARD_ARGUMENTS, Field, Schema, field_of
from posttrain_plugins.types import ConfigOf, Ref

__all__ = ["classes_of", "of_config", "of_source", "package_file", "type_of_annotation"]

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def of_config(target: str) -> Schema:
    """The schema of a dataclass such as `trl:SFTConfig`, read from its source and that of its bases.

    Raises:
        LookupError: the package or the class is not there.
    """
    return Schema(_class_fields(*classes_of(target)[0]))


def classes_of(target: str) -> list[tuple[Path, ast.ClassDef]]:
    """A class and its bases, nearest first, each with its file; bases that cannot be read are left out.

    Raises:
        LookupError: the package or the class is not there.
    """
    package, _, name = target.partition(":")
    found = _find_class(package_file(package), name)
    if found is None:
        raise LookupError(f"no class '{name}' in {package}")
    return list(_with_bases(*found))


def _with_bases(file: Path, node: ast.ClassDef) -> Iterator[tuple[Path, ast.ClassDef]]:
    yield file, node
    for base in node.bases:
        found = _find_class(file, base.id) if isinstance(base, ast.Name) else None
        if found is not None:
            yield from _with_bases(*found)


def of_source(file: Path, attr: str) -> Schema:
    """The schema of a function or dataclass in a `.py` file that must not be imported.

    Raises:
        LookupError: the file defines no such function or class.
        SyntaxError: the file is not Python.
    """
    node = next((n for n in _parse(file).body if isinstance(n, Definition) and n.name == attr), None)
    if node is None:
        raise LookupError(f"{file.name} defines no function or class '{attr}'")
    doc = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        attributes = {name: value for name, value in _literals(node.body).items() if name in DECLARATIONS}
        if "__call__" in methods:
            attributes.setdefault("reward_columns", _required_arguments(methods["__call__"]))
        init = methods.get("__init__")
        fields = dict(list(_function_fields(init))[1:]) if init else _class_fields(file, node)
        return Schema(fields, attributes, init is not None and init.args.kwarg is not None, doc=doc)
    attributes = {"reward_columns": _required_arguments(node), **_function_attributes(file, attr)}
    fields = dict(_function_fields(node))
    borrowed = attributes.get("params_of")
    if borrowed and "{" not in borrowed:
        fields = {**of_config(borrowed).fields, **fields}
    is_open = node.args.kwarg is not None and (not borrowed or "{" in borrowed)
    return Schema(fields, attributes, is_open, is_class=False, doc=doc)


def _parse(file: Path) -> ast.Module:
    return _parsed(file, file.stat().st_mtime_ns)


@cache
def _parsed(file: Path, mtime_ns: int) -> ast.Module:
    return ast.parse(file.read_bytes(), filename=str(file))


def package_file(package: str) -> Path:
    """The source file of a package or module, without importing it; the file need not be there.

    Raises:
        LookupError: its top-level package is not installed.
    """
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
    for node in _parse(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return file, node
    imported = _imports(file).get(name)
    source = _import_source(file, imported[0]) if imported else None
    if imported is None or source is None or not source.is_file() or source == file:
        return None
    return _find_class(source, imported[1])


@cache
def _imports(file: Path) -> dict[str, tuple[ast.ImportFrom, str]]:
    """Name -> the module-level `from ... import` that brings it (also under `if` and `try`), and its name there."""
    found: dict[str, tuple[ast.ImportFrom, str]] = {}
    pending: list[ast.stmt] = list(_parse(file).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom):
            found.update({alias.asname or alias.name: (node, alias.name) for alias in node.names})
        elif isinstance(node, ast.If | ast.Try):
            pending.extend([*node.body, *node.orelse, *getattr(node, "finalbody", ())])
    return found


def _import_source(file: Path, node: ast.ImportFrom) -> Path | None:
    parts = node.module.split(".") if node.module else []
    if node.level:
        return _module_file(file.parents[node.level - 1], parts)
    try:
        return package_file(".".join(parts))
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
            if item.target.id.startswith("_") or _is_class_variable(item.annotation) or _is_not_given(item.value):
                continue
            annotation = _Choices(file).visit(copy.deepcopy(item.annotation))
            fields[item.target.id] = _source_field(item.target.id, annotation, item.value)
    return fields


class _Choices(ast.NodeTransformer):
    """Puts `Literal["a", "b"]` where an annotation names it: `Mode: TypeAlias = Literal["a", "b"]`, also imported."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in _NAMES or node.id == "Literal":
            return node
        for item in _parse(self.file).body:
            if isinstance(item, ast.Assign | ast.AnnAssign) and isinstance(item.value, ast.Subscript):
                target = item.target if isinstance(item, ast.AnnAssign) else item.targets[0]
                if ast.unparse(target) == node.id and _name(item.value.value) == "Literal":
                    return item.value
        imported = _imports(self.file).get(node.id)
        source = _import_source(self.file, imported[0]) if imported else None
        if imported is None or source is None or not source.is_file() or source == self.file:
            return node
        return _Choices(source).visit(ast.Name(imported[1]))  # type: ignore[no-any-return]


def _is_class_variable(annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.Constant):  # quoted
        return str(annotation.value).removeprefix("typing.").startswith("ClassVar")
    return _name(annotation.value if isinstance(annotation, ast.Subscript) else annotation) == "ClassVar"


def _is_not_given(value: ast.expr | None) -> bool:
    """`field(init=False)` is no parameter."""
    given = value.keywords if isinstance(value, ast.Call) and _name(value.func) == "field" else ()
    return any(k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in given)


def _name(node: ast.expr) -> str:
    """`ClassVar` of `typing.ClassVar` and of `ClassVar`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _literals(body: Sequence[ast.stmt]) -> dict[str, Any]:
    """`name = literal` among statements; `owner.name = literal` comes as `owner.name`."""
    literals = {}
    for item in body:
        if not isinstance(item, ast.Assign | ast.AnnAssign) or item.value is None:
            continue
        target = item.target if isinstance(item, ast.AnnAssign) else item.targets[0]
        with contextlib.suppress(ValueError):
            literals[ast.unparse(target)] = ast.literal_eval(item.value)
    return literals


def _function_attributes(file: Path, name: str) -> dict[str, Any]:
    """`score.requires_columns = ("solution",)` beside the function `score`."""
    found = _literals(_parse(file).body)
    declared = {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}
    return {key: value for key, value in declared.items() if key in DECLARATIONS}


def _function_fields(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, Field]]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for arg, value in [
        *zip(positional, [*padding, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]:
        yield arg.arg, _source_field(arg.arg, arg.annotation, value)


def _required_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    return tuple(n for n, f in _function_fields(node) if f.is_required and n not in REWARD_ARGUMENTS)


def _source_field(name: str, annotation: ast.expr | None, value: ast.expr | None) -> Field:
    if isinstance(value, ast.Call) and _name(value.func) == "field":
        given = {k.arg: k.value for k in value.keywords}
        value = given.get("default", given.get("default_factory"))
    if value is None:
        return field_of(name, type_of_annotation(annotation), MISSING)
    try:
        return field_of(name, type_of_annotation(annotation), ast.literal_eval(value))
    except ValueError:
        return dataclasses.replace(field_of(name, type_of_annotation(annotation), None), is_literal=False)


_NAMES: dict[str, Any] = {
    **{n: getattr(our_types, n) for n in our_types.__all__ if n.endswith("Ref")},
    **{n: getattr(typing, n) for n in ("Any", "Optional", "Union", "Annotated")},
    **{"List": list, "Dict": dict, "Tuple": tuple, "Set": set, "Sequence": Sequence, "Mapping": Mapping},
    **{t.__name__: t for t in (str, int, float, bool, list, dict, tuple, set, bytes)},
}


def type_of_annotation(annotation: ast.expr | None) -> Any:
    """The type that an annotation stands for; what is not known here is `Any`, which accepts anything."""
    try:
        return _type(annotation)
    except (TypeError, SyntaxError, ValueError):
        return Any


def _type(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(str(text)):
            return _type(ast.parse(text, mode="eval").body)
        case ast.Constant(None) | ast.Constant(types.EllipsisType()):
            return node.value
        case ast.BinOp(left, ast.BitOr(), right):
            return Union[_type(left), _type(right)]  # noqa: UP007 (the operands are values)
        case ast.Tuple(items):
            return tuple(_type(item) for item in items)
        case ast.Subscript(outer, inner) if _name(outer) == "Literal":
            return Literal[ast.literal_eval(inner)]
        case ast.Subscript(outer, ast.Tuple([inner, *notes])) if _name(outer) == "Annotated":
            return Annotated[(_type(inner), *(_note(note) for note in notes))]
        case ast.Subscript(outer, inner):
            kind = _type(outer)
            return Any if kind is Any else kind[_type(inner)]
        case ast.Name() | ast.Attribute():
            return _NAMES.get(_name(node), Any)
    return Any


def _note(node: ast.expr) -> Any:
    """`ConfigOf("trl:SFTConfig")` and `Ref("model")` mean something to us; every other note is None."""
    marks: dict[str, Any] = {"ConfigOf": ConfigOf, "Ref": Ref}
    mark = marks.get(_name(node.func)) if isinstance(node, ast.Call) else None
    return mark(*map(ast.literal_eval, node.args)) if mark is not None and isinstance(node, ast.Call) else None
