"""The words for what a plugin or a config class takes, and whether a value fits."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from posttrain_plugins.plugins.declarations import DECLARATIONS
from posttrain_plugins.types import ConfigOf, Ref

__all__ = ["MISSING", "REWARD_ARGUMENTS", "Field", "Schema", "accepts", "field_of", "type_name"]

MISSING = dataclasses.MISSING
REWARD_ARGUMENTS = frozenset(
    {"self", "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)
"""What a trainer gives every reward; an argument beside these is a column of the data set."""


SCORED = frozenset({"prompts", "completions", "completion_ids"})


@dataclass(frozen=True)
class Field:
    """One parameter: its name, type, default, and what the type's annotation says of it.

    A default that is computed (`field(default_factory=...)` in a source file) is None and not `is_literal`.
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
    """The parameters of a plugin, and the class attributes that recipes are checked against."""

    fields: Mapping[str, Field]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_open: bool = False  # takes **kwargs
    is_class: bool = True
    doc: str = ""

    def declares(self, name: str) -> Any:
        """Return what the plugin declares, or the default of `DECLARATIONS`; a class's property as the property."""
        return self.attributes.get(name, DECLARATIONS[name].default)

    @property
    def makes_reward(self) -> bool:
        """Is it a function that gives a reward, rather than being one? It takes nothing of a reward's call."""
        return not (self.is_class or self.is_open or SCORED & self.fields.keys())

    def without_fields(self) -> Schema:
        """A plain function that is used as it is takes no parameters from a recipe."""
        return dataclasses.replace(self, fields={}, is_open=False)


def field_of(name: str, annotation: Any, default: Any) -> Field:
    """A parameter with what the notes of its annotation say: `Ref`, `ConfigOf`."""
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
