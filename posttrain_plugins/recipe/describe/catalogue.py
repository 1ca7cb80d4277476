"""What `posttrain plugins` tells: every plugin, and one in full."""

from __future__ import annotations

import ast
from typing import Any

from posttrain_plugins.errors import InputError, PluginBroken, PluginNotFound
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import Plugin
from posttrain_plugins.plugins.schema import Field, is_list, type_name
from posttrain_plugins.plugins.signature import reward_columns
from posttrain_plugins.recipe.plugin_schema import plugin_schema
from posttrain_plugins.recipe.source_hash import module_file
from posttrain_plugins.types import KINDS, Kind

__all__ = ["chosen", "listing", "show"]


def listing(kind: str | None = None) -> list[dict[str, str]]:
    """One row a plugin: kind, name, distribution, version, target, status, cause, summary.

    The status is `ok`, `broken` (it cannot be imported), or `conflict` (another package gives the same name).

    Our own are described from their source; a stranger's module is imported, because only that tells whether it works.

    Raises:
        InputError: no such kind.
    """
    return [_told(plugin) for wanted in _kinds(kind) for plugin in registry.installed(wanted)]


def chosen(name: str | None, kind: str | None = None) -> list[Plugin]:
    """The plugin of that name, or every installed one.

    Raises:
        PluginNotFound: nothing has that name.
    """
    if name is not None:
        return [_find(name, kind)]
    return [plugin for wanted in _kinds(kind) for plugin in registry.installed(wanted)]


def show(name: str, kind: str | None = None) -> dict[str, Any]:
    """Everything about one plugin: docstring, parameters, needed columns, where it lives.

    Raises:
        PluginNotFound: nothing has that name.
        PluginBroken: it cannot be imported.
    """
    plugin = _find(name, kind)
    found = plugin_schema(plugin)
    columns = found.attributes.get("requires_columns", found.attributes.get("reward_columns"))
    if columns is None and plugin.kind == "reward" and plugin.file is None:
        columns = reward_columns(plugin.load())
    return {
        **_row(plugin),
        "doc": found.doc or _docstring(plugin),
        "parameters": [
            {
                "name": field.name,
                "type": _type(field),
                "default": None if field.is_required else field.default,
                "required": field.is_required,
            }
            for field in found.fields.values()
        ],
        "columns": columns if not isinstance(columns, property) else None,
        "produces": found.declares("produces") if plugin.kind == "stage" else None,
        "source": str(plugin.file or module_file(plugin.target.partition(":")[0])),
    }


def _type(field: Field) -> str:
    """Its type; for a reference what it names, for options whose they are."""
    if field.config is not None:
        return f"options of {field.config.target}"
    if field.ref is None:
        return type_name(field.type)
    kind = field.ref.kind
    return f"list of {registry.PLURAL.get(kind, kind + 's')}" if is_list(field.type) else kind


def _kinds(kind: str | None) -> tuple[Kind, ...]:
    if kind is None:
        return KINDS
    singular = kind.removesuffix("s") if kind != "strategies" else "strategy"
    if singular not in KINDS:
        raise InputError(f"no kind '{kind}' of plugin", hint=registry.suggest(kind, KINDS) or ", ".join(KINDS))
    return (singular,)


def _find(name: str, kind: str | None) -> Plugin:
    misses: list[PluginNotFound] = []
    for wanted in _kinds(kind):
        try:
            return registry.find(wanted, name)
        except PluginNotFound as miss:
            misses.append(miss)
    near = registry.suggest(name, [p.name for wanted in _kinds(kind) for p in registry.installed(wanted)])
    raise PluginNotFound(f"no plugin '{name}'", hint=near or "posttrain plugins list")


def _told(plugin: Plugin) -> dict[str, str]:
    """A row that also tells who else gives the name."""
    row = _row(plugin)
    others = [p for p in registry.installed(plugin.kind) if p.name == plugin.name and p != plugin]
    if not others or row["status"] != "ok":
        return row
    cause = f"also given by {others[0].distribution}: write {plugin.distribution}:{plugin.name}"
    return {**row, "status": "conflict", "cause": cause}


def _row(plugin: Plugin) -> dict[str, str]:
    row = {
        "kind": plugin.kind,
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "target": plugin.target,
        "status": "ok",
        "cause": "",
        "summary": "",
    }
    try:
        if plugin.file is None and not plugin.target.startswith("posttrain_plugins."):
            plugin.load()
        return {**row, "summary": _docstring(plugin).strip().partition("\n")[0]}
    except PluginBroken as broken:
        cause = broken.__cause__
        return {**row, "status": "broken", "cause": f"{type(cause).__name__}: {cause}"}


def _docstring(plugin: Plugin) -> str:
    """The object's docstring, else its module's, read from the source."""
    module, _, attr = plugin.target.rpartition(":")
    file = plugin.file or module_file(module)
    if file is None:
        return ""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == attr:
            return ast.get_docstring(node) or ast.get_docstring(tree) or ""
    return ast.get_docstring(tree) or ""
