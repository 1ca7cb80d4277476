"""What a plugin takes, asked of the live object: its signature, its annotations, its class attributes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from posttrain_plugins.plugins.declarations import DECLARATIONS, declared
from posttrain_plugins.plugins.schema import MISSING, REWARD_ARGUMENTS, Schema, field_of
from posttrain_plugins.plugins.source import of_config, type_of_annotation

__all__ = ["of_object", "reward_columns"]


def of_object(plugin: Any) -> Schema:
    """Return the schema of a live plugin: a dataclass's fields, or a function's parameters.

    A function's `params_of = "peft:LoraConfig"` stands for its `**params`.
    """
    hints = _hints(plugin)
    fields = {name: field_of(name, hints.get(name, Any), default) for name, default in _parameters(plugin)}
    borrowed = declared(plugin, "params_of")
    if borrowed and "{" not in borrowed:  # `peft:{peft_type}` is known only with the parameter's value
        # its own come last: they may have another default than PEFT's
        fields = {**of_config(borrowed).fields, **fields}
    is_open = (not borrowed or "{" in borrowed) and any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(plugin).parameters.values()
    )
    attributes = {name: getattr(plugin, name) for name in DECLARATIONS if hasattr(plugin, name)}
    return Schema(fields, attributes, is_open, isinstance(plugin, type), inspect.getdoc(plugin) or "")


def reward_columns(reward: Any) -> tuple[str, ...]:
    """Return the data-set columns that a reward needs: `requires_columns`, else its arguments without a default."""
    needed = declared(reward, "requires_columns")
    if needed is not None:
        return tuple(needed)
    reward = inspect.unwrap(reward)  # the author's own under the guard, which takes any column
    call = reward.__call__ if isinstance(reward, type) or not inspect.isroutine(reward) else reward
    parameters = inspect.signature(call).parameters.values()
    return tuple(
        p.name
        for p in parameters
        if p.name not in REWARD_ARGUMENTS
        and p.default is inspect.Parameter.empty
        and p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    )


def _hints(plugin: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(plugin, include_extras=True)
    except (NameError, TypeError):  # a name under TYPE_CHECKING; each annotation by itself, then
        given = getattr(plugin, "__annotations__", {})
        return {k: type_of_annotation(ast.Constant(v)) if isinstance(v, str) else v for k, v in given.items()}


def _parameters(plugin: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(plugin):
        for f in dataclasses.fields(plugin):
            if f.init:  # a field that the constructor does not take is no parameter
                factory = f.default_factory
                yield f.name, f.default if factory is MISSING else factory()
        return
    for p in inspect.signature(plugin).parameters.values():
        if p.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            yield p.name, MISSING if p.default is inspect.Parameter.empty else p.default
