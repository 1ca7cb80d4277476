"""How a recipe writes a plugin, and what that plugin says of itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError
from posttrain_plugins.plugins.registry import Plugin
from posttrain_plugins.plugins.schema import Schema
from posttrain_plugins.plugins.signature import of_object, reward_columns
from posttrain_plugins.plugins.source import of_source
from posttrain_plugins.recipe.build import construct
from posttrain_plugins.recipe.spec import StageSpec, Use

__all__ = ["declared_columns", "needed_columns", "parse_call", "plugin_schema", "required_columns"]


CALLED = ("reward", "strategy", "tool")
"""Kinds of which a plain function is used as it is: its arguments are no parameters of a recipe."""


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Read `self_consistency(n=8)` as a name and its parameters, in the form in which our tables print it.

    Bare words are text, so `scorer=rm` and `scorer=quickstart:rm` need no quotes; a call inside, as in
    `compute_optimal(strategies=[greedy, best_of_n(n=8, scorer=prm)])`, is the text of that call.

    Raises:
        InputError: it is not a name with keyword parameters.
    """
    if "(" not in text:
        return text.strip(), {}
    name, _, rest = text.partition("(")
    arguments = _Arguments(rest)
    try:
        params = arguments.named()
        if arguments.rest().strip():
            raise ValueError("something stands behind the last ')'")
        return name.strip(), params
    except (SyntaxError, ValueError) as cause:
        quotes = "in a YAML list it needs quotes: 'name(a=1, b=2)'"
        hint = "for instance self_consistency(n=8)" if ")" in text else quotes
        raise InputError(f"'{text}' is not NAME(key=value, ...)", hint=hint) from cause


class _Arguments:
    """What stands behind the `(` of a call, read from left to right."""

    TOKEN = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,()\[\]{}='"]+|[,()\[\]{}=])""")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def rest(self) -> str:
        return self.text[self.at :]

    def take(self) -> str:
        match = self.TOKEN.match(self.text, self.at)
        if match is None:
            raise ValueError("it ends too early")
        self.at = match.end()
        return match[1]

    def next_is(self, sign: str) -> bool:
        return self.rest().lstrip().startswith(sign)

    def named(self) -> dict[str, Any]:
        """Read `key=value, ...)`, with the bracket that ends it."""
        params: dict[str, Any] = {}
        while not self.next_is(")"):
            key = self.take()
            if not key.isidentifier() or self.take() != "=" or key in params:
                raise ValueError("parameters need names, each its own")
            params[key] = self.value()
            if not self.next_is(")") and self.take() != ",":
                raise ValueError("a comma is missing")
        self.take()
        return params

    def value(self) -> Any:
        start = self.at
        token = self.take()
        if token in ("[", "("):
            items = []
            while not self.next_is(end := {"[": "]", "(": ")"}[token]):
                items.append(self.value())
                if not self.next_is(end) and self.take() != ",":
                    raise ValueError("a comma is missing")
            self.take()
            return items
        if token == "{":  # a mapping, as Python writes it
            while token != "}":
                token = self.take()
            return ast.literal_eval(self.text[start : self.at].strip())
        if token[0] in "\"'":
            return ast.literal_eval(token)
        if token in (",", ")", "]", "}", "="):
            raise ValueError(f"'{token}' is no value")
        if self.next_is("("):
            self.take()
            self.named()
            return self.text[start : self.at].strip()
        try:
            return ast.literal_eval(token)  # a number, True, None
        except (SyntaxError, ValueError):
            return token


def plugin_schema(plugin: Plugin) -> Schema:
    """Return a plugin's parameters; a reward, strategy or tool that is a plain function has none.

    A check reads it once, and it travels with `Use` and `StageSpec` from there. A function that makes a reward, as
    TRL's `get_soft_overlong_punishment` does, has its own, and needs no column.

    Raises:
        PluginBroken: it cannot be imported.
        LookupError, SyntaxError: its file cannot be read.
    """
    if plugin.file is not None:  # a user's file is never imported by a check, which must be safe and quick
        found = of_source(plugin.file, plugin.attr)
        if plugin.kind == "reward" and found.makes_reward:
            return replace(found, attributes={**found.attributes, "reward_columns": ()})
        return found if plugin.kind not in CALLED or found.is_class else found.without_fields()
    loaded = plugin.load()
    if plugin.kind == "reward" and not isinstance(loaded, type) and of_object(loaded).makes_reward:
        return replace(of_object(loaded), attributes={"reward_columns": ()})
    if plugin.kind in CALLED and not isinstance(loaded, type):
        return Schema({}, {"reward_columns": reward_columns(loaded)} if plugin.kind == "reward" else {})
    return of_object(loaded)


def needed_columns(reward: Use) -> tuple[str, ...]:
    """Return the data-set columns that a reward needs."""
    attributes = reward.schema.attributes
    if reward.plugin.file is not None or "reward_columns" in attributes:
        return tuple(attributes.get("requires_columns", attributes.get("reward_columns", ())))
    return reward_columns(reward.plugin.load())


def declared_columns(source: Use | StageSpec) -> tuple[str, ...] | None:
    """Return what a data set plugin or a data-making stage says of its columns; None where it says nothing."""
    columns = source.schema.declares("columns")
    if source.plugin.file is None:
        loaded = source.plugin.load()
        params = source.params if isinstance(source, Use) else {**source.names(), **source.params}
        try:  # of an object: `columns` may be a property, since parameters decide
            columns = getattr(loaded(**params) if isinstance(loaded, type) else loaded, "columns", None)
        except PLUGIN_FAILURES:  # the plugin boundary; `Checker.check_built` tells it
            return None
    return tuple(columns) if isinstance(columns, list | tuple) else None


def required_columns(spec: StageSpec) -> Mapping[str, Any]:
    """Return a stage's `requires_columns`: a mapping, or a property of the configured stage if parameters decide."""
    declared = spec.schema.declares("requires_columns")
    if isinstance(declared, property):
        declared = construct(spec.plugin.load(), {**spec.names(), **spec.params}).requires_columns
    return declared if isinstance(declared, Mapping) else {}
