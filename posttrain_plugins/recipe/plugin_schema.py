"""How a recipe writes a plugin, and what that plugin says of itself."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins.registry import Plugin
from posttrain_plugins.plugins.schema import Schema
from posttrain_plugins.plugins.signature import of_object, reward_columns
from posttrain_plugins.plugins.source import of_source
from posttrain_plugins.recipe.build import construct
from posttrain_plugins.recipe.spec import StageSpec

__all__ = ["declared_columns", "needed_columns", "parse_call", "plugin_schema"]


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """`self_consistency(n=8)` -> its name and parameters; bare words are strings, so `scorer=rm` needs no quotes.

    Raises:
        InputError: it is not a name with keyword parameters.
    """
    if "(" not in text:
        return text.strip(), {}
    name, _, rest = text.partition("(")
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("parameters need names")
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("** stands for nothing here")
        return name.strip(), {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as cause:
        quotes = "in a YAML list it needs quotes: 'name(a=1, b=2)'"
        hint = "for instance self_consistency(n=8)" if ")" in text else quotes
        raise InputError(f"'{text}' is not NAME(key=value, ...)", hint=hint) from cause


def _literal(node: ast.expr) -> Any:
    """A literal; a bare word is text, also in a list."""
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def plugin_schema(plugin: Plugin) -> Schema:
    """A plugin's parameters; a reward or strategy that is a plain function has none.

    A function that makes a reward, as TRL's `get_soft_overlong_punishment` does, has its own, and needs no column.

    Raises:
        PluginBroken: it cannot be imported.
        LookupError, SyntaxError: its file cannot be read.
    """
    if plugin.file is not None:
        found = of_source(plugin.file, plugin.attr)
        if plugin.kind == "reward" and found.makes_reward:
            return replace(found, attributes={**found.attributes, "reward_columns": ()})
        return found if plugin.kind not in ("reward", "strategy") or found.is_class else found.without_fields()
    loaded = plugin.load()
    if plugin.kind == "reward" and not isinstance(loaded, type) and of_object(loaded).makes_reward:
        return replace(of_object(loaded), attributes={"reward_columns": ()})
    if plugin.kind in ("reward", "strategy") and not isinstance(loaded, type):
        return Schema({}, {"reward_columns": reward_columns(loaded)} if plugin.kind == "reward" else {})
    return of_object(loaded)


def needed_columns(reward: Plugin, found: Schema | None) -> tuple[str, ...]:
    """The data-set columns that a reward needs; `found` is its schema."""
    attributes = found.attributes if found else {}
    if reward.file is not None or "reward_columns" in attributes:
        return tuple(attributes.get("requires_columns", attributes.get("reward_columns", ())))
    return reward_columns(reward.load())


def declared_columns(plugin: Plugin, params: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What a data set plugin or a data-making stage says of its columns; None where it says nothing."""
    if plugin.file is not None:
        literal = plugin_schema(plugin).declares("columns")
        return tuple(literal) if isinstance(literal, list | tuple) else None
    loaded = plugin.load()
    try:
        columns = getattr(loaded(**params) if isinstance(loaded, type) else loaded, "columns", None)
    except Exception:  # the plugin boundary; `Checker.check_built` tells it
        return None
    return tuple(columns) if isinstance(columns, list | tuple) else None


def required_columns(spec: StageSpec, declared: Any) -> Mapping[str, Any]:
    """A stage's `requires_columns`: a mapping, or a property of the configured stage where its parameters decide."""
    if isinstance(declared, property):
        declared = construct(spec.plugin.load(), {**spec.names(), **spec.params}).requires_columns
    return declared if isinstance(declared, Mapping) else {}
