"""Parameters of plugins and config classes: their names, types and defaults, and whether a value fits a type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from posttrain_plugins.plugins.declarations import DECLARATIONS
from posttrain_plugins.types import ConfigOf, Ref

__all__ = ["MISSING", "REWARD_ARGUMENTS", "Arguments", "Field", "Options", "Schema", "accepts", "field_of", "type_name"]

MISSING = dataclasses.MISSING
REWARD_ARGUMENTS = frozenset(
    {"self", "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)
"""The arguments that a trainer gives every reward; any other argument is a column of the data set."""

SCORED = frozenset({"prompts", "completions", "completion_ids"})


@dataclass(frozen=True)
class Field:
    """One parameter.

    Args:
        name: its name.
        type: its annotation, as far as it is known; `Any` accepts anything.
        default: `MISSING` for a required one; None for one that is computed in a source file, which is not run.
        ref: the annotation's `Ref`, if it names another entry of a recipe.
        config: the annotation's `ConfigOf`, if it goes to a config class.
        doc: what a docstring says of it.
        is_literal: whether `default` is the real one.
    """

    name: str
    type: Any
    default: Any = MISSING
    ref: Ref | None = None
    config: ConfigOf | None = None
    doc: str = ""
    is_literal: bool = True

    @property
    def is_required(self) -> bool:
        return self.default is MISSING


@dataclass(frozen=True)
class Schema:
    """The parameters of a plugin, and what it declares.

    Args:
        fields: name -> parameter.
        attributes: those of `DECLARATIONS` that it has, and `reward_columns`, the columns that a reward's call needs by
            its signature.
        is_open: whether it takes any further keyword.
        is_class: whether it is a class, and not a function.
        doc: its docstring.
    """

    fields: Mapping[str, Field]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_open: bool = False
    is_class: bool = True
    doc: str = ""

    def declares(self, name: str) -> Any:
        """Return what the plugin declares, or the default of `DECLARATIONS`; a class's property as the property."""
        return self.attributes.get(name, DECLARATIONS[name].default)

    @property
    def makes_reward(self) -> bool:
        """Is it a function that returns a reward? Then it takes nothing of a reward's call."""
        return not (self.is_class or self.is_open or SCORED & self.fields.keys())

    def without_fields(self) -> Schema:
        """Return the schema of a function that is used as it is: it takes no parameters from a recipe."""
        return dataclasses.replace(self, fields={}, is_open=False)


class Options(Mapping[str, Any]):
    """What a config object will hold: what is given, else the default of its field, read when it is asked for.

    Without the fields that are required, or whose default only a run could tell.

    Args:
        fields: of the config class.
        given: by the recipe.
    """

    def __init__(self, fields: Mapping[str, Field], given: Mapping[str, Any]) -> None:
        self.fields = fields
        self.given = given

    def __getitem__(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        field = self.fields[name]
        if field.is_required or not field.is_literal:
            raise KeyError(name)
        return field.default

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in {**self.given, **dict.fromkeys(self.fields)} if name in self])

    def __len__(self) -> int:
        return len(list(iter(self)))


class Arguments:
    """`Options` as attributes, as a config object has them, to read and to set; None where only a run could tell.

    Args:
        options: read when they are asked for: a trainer has two hundred, and a check looks at twenty.
    """

    def __init__(self, options: Options) -> None:
        self._options = options

    def __getattr__(self, name: str) -> Any:
        if name not in self._options.given and name not in self._options.fields:
            raise AttributeError(name)
        return self._options.get(name)


def field_of(name: str, annotation: Any, default: Any) -> Field:
    """Return a parameter with what its annotation says, at any depth: `list[RewardRef] | None` holds a `Ref`."""
    marks = list(_marks(annotation))
    ref = next((m for m in marks if isinstance(m, Ref)), None)
    config = next((m for m in marks if isinstance(m, ConfigOf)), None)
    return Field(name, annotation, default, ref, config)


def _marks(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in typing.get_args(annotation):
        yield from _marks(argument)


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
    if kind in (int, float):  # `True` is an int in Python, and a mistake in a recipe
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (str, bool):
        return isinstance(value, kind)
    if _is(kind, Mapping):
        return isinstance(value, Mapping) and all(accepts(arguments[1], v) for v in value.values() if arguments)
    if kind is tuple:  # YAML has lists only
        if not isinstance(value, list) or not arguments or arguments[-1] is Ellipsis:
            return isinstance(value, list) and all(accepts(arguments[0], v) for v in value if arguments)
        return len(arguments) == len(value) and all(map(accepts, arguments, value))
    if kind in (list, set) or _is(kind, Sequence):
        return isinstance(value, list) and all(accepts(arguments[0], v) for v in value if arguments)
    return True


def _is(kind: Any, abstract: Any) -> bool:
    # a text is a sequence of texts, but no list in YAML
    return isinstance(kind, type) and issubclass(kind, abstract) and kind is not str


def type_name(annotation: Any) -> str:
    """Return a type as a person writes it: `int | None`, `'strict' | 'fraction'`."""
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


def is_list(annotation: Any) -> bool:
    """Does a reference field hold several? `list[RewardRef]`, `list[ModelRef] | None`."""
    origin = typing.get_origin(annotation)
    if origin is list:
        return True
    return any(is_list(a) for a in typing.get_args(annotation)) if origin is not typing.Annotated else False
