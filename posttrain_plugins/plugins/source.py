"""Reads from the source what a plugin or a config class takes.

TRL's and PEFT's config classes, and a user's `./file.py`, are parsed with `ast`, following re-exports and base classes
from file to file, and never imported. A user's file is parsed whole; of a config class its statements are cut out by
their indentation, and parsed one by one when they are asked for.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from posttrain_plugins import types as our_types
from posttrain_plugins.plugins.declarations import DECLARATIONS
from posttrain_plugins.plugins.schema import MISSING, REWARD_ARGUMENTS, Field, Schema, field_of
from posttrain_plugins.types import ConfigOf, Ref

__all__ = ["classes_of", "of_config", "of_source", "package_file", "type_of_annotation"]

Function = ast.FunctionDef | ast.AsyncFunctionDef


class SourceFile:
    """A Python file as text, of which no more is parsed than is asked for, and nothing is run.

    `TrainingArguments` alone takes 40 ms to parse, more than all the rest of `posttrain validate`.

    Args:
        file: its path.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        # A line break before the first line too: patterns that begin with one are found sooner than with
        # `^`. The bytes, because a file says its own encoding.
        self.text = f"\n{importlib.util.decode_source(file.read_bytes())}\n"

    @functools.cached_property
    def body(self) -> list[ast.stmt]:
        """Return all statements."""
        return ast.parse(self.text[1:], filename=str(self.file)).body  # with the lines of the file

    @functools.cached_property
    def imports(self) -> dict[str, tuple[str, str, str]]:
        """Return name -> the dots and the module of the `from ... import` that brings it, and its name there."""
        found: dict[str, tuple[str, str, str]] = {}
        for dots, module, names in _IMPORT.findall(self.text):  # also under `if TYPE_CHECKING` and in `try`
            for part in re.sub(r"#.*|[()\\]", "", names).split(","):
                name, _, alias = part.strip().partition(" as ")
                found.setdefault(alias.strip() or name, (dots, module, name))
        return found

    def statement(self, head: str) -> str:
        """Return the text of the first statement that begins with a pattern; empty if there is none."""
        match = re.search(rf"\n({head}.*\n(?:(?:[ \t)\]}}#].*)?\n)*)", self.text)
        return match[1] if match else ""

    def find(self, name: str, head: str) -> tuple[SourceFile, str] | None:
        """Return the file and the text of the statement that defines a name.

        It stands here, or where `from .module import name` leads, however far.

        Args:
            name: of a class, or of what is assigned.
            head: how the statement begins, a pattern with `{}` for the name.
        """
        if text := self.statement(head.format(name)):
            return self, text
        if name not in self.imports:
            return None
        dots, module, its_name = self.imports[name]
        parts = module.split(".") if module else []
        try:
            file = _module_file(self.file.parents[len(dots) - 1], parts) if dots else package_file(module)
        except LookupError:  # a package that is not installed adds no fields
            return None
        is_elsewhere = file.is_file() and file != self.file  # a package may import a name from itself
        return _read(file, file.stat().st_mtime_ns).find(its_name, head) if is_elsewhere else None


class SourceClass:
    """A class as it is written.

    Args:
        file: where it stands.
        text: the whole statement.
    """

    def __init__(self, file: SourceFile, text: str) -> None:
        self.file = file
        self.text = text

    @functools.cached_property
    def node(self) -> ast.ClassDef:
        """Return the whole class as a statement."""
        (found,) = ast.parse(self.text).body
        assert isinstance(found, ast.ClassDef)
        return found

    @functools.cached_property
    def head(self) -> ast.ClassDef:
        """Return the class without its body: its name and bases."""
        (found,) = ast.parse(re.split(r":\s*(?:#.*)?\n", self.text, maxsplit=1)[0] + ": ...").body
        assert isinstance(found, ast.ClassDef)
        return found

    def annotated(self) -> dict[str, str]:
        """Return name -> `name: type = value`, as it is written, of every annotated name of the body."""
        # Statements that are texts go first: a docstring may have lines that look like a field.
        text = re.sub(r'\n[ \t]+[rR]?"""[\s\S]*?"""', "\n", self.text)
        found: dict[str, str] = {}
        for match in _ANNOTATED.finditer(text):
            found[match["name"]] = match[0]
        return found

    def with_bases(self) -> list[SourceClass]:
        """Return the class and its bases, nearest first; bases that cannot be read are left out."""
        classes = [self]
        for base in self.head.bases:
            found = self.file.find(base.id, _CLASS) if isinstance(base, ast.Name) else None
            classes += SourceClass(*found).with_bases() if found is not None else []
        return classes


_CLASS = r"class {}\b"
_ASSIGNED = r"{} *(?::[^=\n]+)?=(?!=)"
_IMPORT = re.compile(r"\n[ \t]*from +(\.*)([\w.]*) +import +(\([^)]*\)|(?:.*\\\n)*.*)")
# at the depth of a class's body, with the lines below it that stand deeper or close a bracket
_ANNOTATED = re.compile(r"^(?P<depth> {4}|\t)(?P<name>\w+) *: *\S.*\n(?:(?:(?P=depth)[ \t)\]}].*)?\n)*", re.MULTILINE)


class _LazyFields(Mapping[str, Field]):
    """The fields of a dataclass, each parsed when it is asked for: a trainer has two hundred, a recipe sets ten."""

    def __init__(self, texts: Mapping[str, tuple[SourceClass, str]]) -> None:
        self.texts = texts
        self.parsed: dict[str, Field] = {}

    def __getitem__(self, name: str) -> Field:
        if name not in self.parsed:
            found = _field_of_text(*self.texts[name])
            assert found is not None
            self.parsed[name] = found
        return self.parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


@cache
def of_config(target: str) -> Schema:
    """Return the schema of a dataclass such as `trl:SFTConfig`, read from its source and that of its bases.

    Raises:
        LookupError: the package or the class is not there.
    """
    return Schema(_class_fields(classes_of(target)))


def classes_of(target: str) -> list[SourceClass]:
    """Return a class and its bases, nearest first; bases that cannot be read are left out.

    Raises:
        LookupError: the package or the class is not there.
    """
    package, _, name = target.partition(":")
    file = package_file(package)
    found = _read(file, file.stat().st_mtime_ns).find(name, _CLASS)
    if found is None:
        raise LookupError(f"no class '{name}' in {package}")
    return SourceClass(*found).with_bases()


def of_source(file: Path, attr: str) -> Schema:
    """Return the schema of a function or dataclass in a `.py` file that must not be imported.

    Raises:
        LookupError: the file defines no such function or class.
        SyntaxError: the file is not Python.
    """
    parsed = _read(file, file.stat().st_mtime_ns)
    node = next((n for n in parsed.body if isinstance(n, ast.ClassDef | Function) and n.name == attr), None)
    if node is None:
        raise LookupError(f"{file.name} defines no function or class '{attr}'")
    doc = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        attributes = _declarations(node.body)
        methods = {n.name: n for n in node.body if isinstance(n, Function)}
        if "__call__" in methods:
            attributes["reward_columns"] = _columns(methods["__call__"])
        init = methods.get("__init__")
        # a class with an `__init__` of its own is no dataclass; without `self`
        fields = (
            dict(list(_parameters(init))[1:])
            if init
            else _class_fields(SourceClass(parsed, parsed.statement(_CLASS.format(attr))).with_bases())
        )
        return Schema(fields, attributes, init is not None and init.args.kwarg is not None, doc=doc)
    # `score.requires_columns = ("solution",)` stands beside the function `score`
    attributes = {"reward_columns": _columns(node), **_declarations(parsed.body, f"{attr}.")}
    fields, borrowed = dict(_parameters(node)), attributes.get("params_of")
    is_closed = borrowed and "{" not in borrowed
    if is_closed:
        fields = {**of_config(borrowed).fields, **fields}
    return Schema(fields, attributes, node.args.kwarg is not None and not is_closed, is_class=False, doc=doc)


def package_file(package: str) -> Path:
    """Return the source file of a package or module, without importing it; the file need not be there.

    Raises:
        LookupError: its top-level package is not installed.
    """
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise LookupError(f"package '{top}' is not installed")
    # only the top one: to find the spec of a package within it, Python would import it
    return _module_file(Path(spec.origin).parent, rest) if rest else Path(spec.origin)


@cache
def _read(file: Path, mtime_ns: int) -> SourceFile:
    return SourceFile(file)


def _module_file(folder: Path, parts: Sequence[str]) -> Path:
    path = folder.joinpath(*parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _class_fields(classes: Iterable[SourceClass]) -> Mapping[str, Field]:
    """Return the fields of a dataclass from its classes, nearest first, as `dataclass` itself puts them in order."""
    texts: dict[str, tuple[SourceClass, str]] = {}
    for one in reversed(list(classes)):
        for name, text in one.annotated().items():
            # a private field (TRL's and PEFT's classes have some) is no option for a recipe
            is_doubtful = "ClassVar" in text or "init" in text
            if name[0] != "_" and not (is_doubtful and _field_of_text(one, text) is None):
                texts[name] = (one, text)
    return _LazyFields(texts)


def _field_of_text(owner: SourceClass, text: str) -> Field | None:
    try:
        (item,) = ast.parse(textwrap.dedent(text)).body
    except (SyntaxError, ValueError):  # cut at the wrong place: the whole class tells
        name = text.split(":")[0].strip()
        item = next(n for n in owner.node.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == name)
    assert isinstance(item, ast.AnnAssign)
    return _field(ast.unparse(item.target), item.annotation, item.value, owner.file)


def _parameters(node: Function) -> Iterator[tuple[str, Field]]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    # `defaults` belong to the last of the positional ones
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for arg, value in [
        *zip(positional, [*padding, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]:
        if (field := _field(arg.arg, arg.annotation, value)) is not None:
            yield arg.arg, field


def _columns(node: Function) -> tuple[str, ...]:
    return tuple(n for n, f in _parameters(node) if f.is_required and n not in REWARD_ARGUMENTS)


def _field(
    name: str, annotation: ast.expr | None, value: ast.expr | None, file: SourceFile | None = None
) -> Field | None:
    """Return a parameter; None for a class variable, and for a field that the constructor does not take."""
    if annotation is not None and _name(annotation) == "ClassVar":
        return None
    if isinstance(value, ast.Call) and _name(value.func) == "field":
        given = {k.arg: k.value for k in value.keywords}
        if isinstance(init := given.get("init"), ast.Constant) and init.value is False:
            return None
        value = given.get("default", given.get("default_factory"))
    kind = type_of_annotation(annotation, file)
    if value is None:
        return field_of(name, kind, MISSING)
    try:
        return field_of(name, kind, ast.literal_eval(value))
    except ValueError:  # computed: it has one, and only a run could tell which
        return dataclasses.replace(field_of(name, kind, None), is_literal=False)


def _name(node: ast.expr) -> str:
    """Return the last name of `typing.ClassVar[int]`, `ClassVar[int]` or either in quotes: `ClassVar`."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(name):
            return name
        case ast.Subscript(outer):
            return _name(outer)
        case ast.Constant(str(text)):
            return text.partition("[")[0].rpartition(".")[2]
    return ""


def _declarations(body: Sequence[ast.stmt], prefix: str = "") -> dict[str, Any]:
    """Return what `name = literal` statements declare, or `owner.name = literal` with the prefix `owner.`."""
    found = {}
    for item in body:
        if isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
            target = ast.unparse(item.target if isinstance(item, ast.AnnAssign) else item.targets[0])
            name = target.removeprefix(prefix)
            if target == prefix + name and name in DECLARATIONS:
                with contextlib.suppress(ValueError):
                    found[name] = ast.literal_eval(item.value)
    return found


_NAMES: dict[str, Any] = {
    **{n: getattr(our_types, n) for n in our_types.__all__ if n.endswith("Ref")},
    **{n: getattr(typing, n) for n in ("Any", "Optional", "Union", "Annotated")},
    **{"List": list, "Dict": dict, "Tuple": tuple, "Set": set, "Sequence": Sequence, "Mapping": Mapping},
    **{t.__name__: t for t in (str, int, float, bool, list, dict, tuple, set, bytes)},
}


_MARKS: dict[str, Any] = {"ConfigOf": ConfigOf, "Ref": Ref}


def type_of_annotation(annotation: ast.expr | None, file: SourceFile | None = None) -> Any:
    """Return the type that an annotation stands for; what is not known here is `Any`, which accepts anything.

    Args:
        annotation: an expression, or None.
        file: where it stands, so that `Mode: TypeAlias = Literal["a", "b"]` is looked up there.
    """
    try:
        return _type(annotation, file)
    except (TypeError, SyntaxError, ValueError):
        return Any


def _type(node: ast.expr | None, file: SourceFile | None) -> Any:
    match node:
        case ast.Constant(str(text)):
            return _type(ast.parse(text, mode="eval").body, file)
        case ast.Constant(None) | ast.Constant(types.EllipsisType()):
            return node.value
        case ast.BinOp(left, ast.BitOr(), right):
            return Union[_type(left, file), _type(right, file)]  # noqa: UP007 (the operands are values)
        case ast.Tuple(items):
            return tuple(_type(item, file) for item in items)
        case ast.Subscript(outer, inner) if _name(outer) == "Literal":
            return Literal[ast.literal_eval(inner)]
        case ast.Subscript(outer, ast.Tuple([inner, *notes])) if _name(outer) == "Annotated":
            is_ours = [isinstance(note, ast.Call) and _name(note.func) in _MARKS for note in notes]
            marks = (_type(note, file) if is_mark else None for note, is_mark in zip(notes, is_ours, strict=True))
            return Annotated[(_type(inner, file), *marks)]
        case ast.Subscript(outer, inner):
            kind = _type(outer, file)
            return Any if kind is Any else kind[_type(inner, file)]
        case ast.Call(function, arguments) if _name(function) in _MARKS:
            return _MARKS[_name(function)](*map(ast.literal_eval, arguments))
        case ast.Name(name) if name not in _NAMES and file is not None:
            found = file.find(name, _ASSIGNED)
            value = getattr(ast.parse(found[1]).body[0], "value", None) if found is not None else None
            # only choices: any other name of a module may stand for a class, which nobody can check a text against
            is_choice = isinstance(value, ast.Subscript) and _name(value) == "Literal"
            return _type(value, None) if is_choice else Any
        case ast.Name() | ast.Attribute():
            return _NAMES.get(_name(node), Any)
    return Any
