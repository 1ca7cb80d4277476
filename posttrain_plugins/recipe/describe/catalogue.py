"""What `posttrain plugins` tells: every plugin, and one in full."""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

from posttrain_plugins.errors import InputError, PluginBroken, PluginNotFound
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import Plugin
from posttrain_plugins.types.plugins import KINDS, Kind

__all__ = ["chosen", "listing", "show"]


def listing(kind: str | None = None) -> list[dict[str, str]]:
    """Return one row a plugin: kind, name, distribution, version, target, status, cause, summary.

    The status is `ok`, `broken` (it cannot be imported), or `conflict` (another package gives the same name).

    Raises:
        InputError: no such kind.
    """
    return [_row(plugin) for plugin in chosen(None, kind)]


def chosen(name: str | None, kind: str | None = None) -> list[Plugin]:
    """Return the plugin of that name, one of each kind that has it; or every installed one.

    Raises:
        InputError: no such kind.
        PluginNotFound: nothing has that name.
        PluginConflict: two distributions give it.
    """
    kinds: tuple[Kind, ...] = KINDS
    if kind is not None:
        kinds = tuple(k for k in KINDS if kind in (k, registry.PLURAL[k]))
        if not kinds:
            raise InputError(f"no kind '{kind}' of plugin", hint=registry.suggest(kind, KINDS) or ", ".join(KINDS))
    if name is None:
        return [plugin for wanted in kinds for plugin in registry.installed(wanted)]
    # What stands in a module or a file has the kind that it is asked for as; nothing else tells it.
    is_named = ":" not in name or any(
        f"{p.distribution}:{p.name}" == name for k in kinds for p in registry.installed(k)
    )
    found: list[Plugin] = []
    for wanted in kinds:
        with contextlib.suppress(PluginNotFound):
            found.append(registry.find(wanted, name))
    if found:
        return found if is_named else found[:1]
    near = registry.suggest(name, [plugin.name for wanted in kinds for plugin in registry.installed(wanted)])
    raise PluginNotFound(f"no plugin '{name}'", hint=near or "posttrain plugins list")


def show(name: str, kind: str | None = None) -> list[dict[str, Any]]:
    """Return everything about the plugins of a name, one of each kind: docstring, parameters, columns, where it lives.

    Raises:
        PluginNotFound: nothing has that name.
        PluginBroken: one cannot be imported.
    """
    # Here and not above: listing needs none of it, and answers in the time that the imports take.
    from posttrain_plugins.plugins.schema import is_list, type_name
    from posttrain_plugins.plugins.signature import reward_columns
    from posttrain_plugins.recipe.plugin_schema import plugin_schema

    shown = []
    for plugin in chosen(name, kind):
        found = plugin_schema(plugin)
        columns = found.attributes.get("requires_columns", found.attributes.get("reward_columns"))
        if columns is None and plugin.kind == "reward" and plugin.file is None:
            columns = reward_columns(plugin.load())
        parameters = []
        for field in found.fields.values():
            told = type_name(field.type)
            if field.config is not None:
                told = f"options of {field.config.target}"
            elif field.ref is not None:  # for a reference what it names
                plural = registry.PLURAL.get(field.ref.kind, f"{field.ref.kind}s")
                told = f"list of {plural}" if is_list(field.type) else field.ref.kind
            default = None if field.is_required else field.default
            parameters.append({"name": field.name, "type": told, "default": default, "required": field.is_required})
        row = {
            **_row(plugin),
            "doc": found.doc or (inspect.getdoc(plugin.load()) or "" if plugin.file is None else ""),
            "parameters": parameters,
            "columns": columns if not isinstance(columns, property) else None,
            "produces": found.declares("produces") if plugin.kind == "stage" else None,
            "source": str(plugin.file or registry.module_file(plugin.target.partition(":")[0])),
        }
        shown.append(row)
    return shown


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
        summary = _summary(plugin)
    except PluginBroken as broken:
        found = broken.__cause__
        return {**row, "status": "broken", "cause": f"{type(found).__name__}: {found}"}
    others = [p for p in registry.installed(plugin.kind) if p.name == plugin.name and p != plugin]
    if others and plugin.distribution:
        cause = f"also given by {others[0].distribution}: write {plugin.distribution}:{plugin.name}"
        return {**row, "status": "conflict", "cause": cause, "summary": summary}
    return {**row, "summary": summary}


def _summary(plugin: Plugin) -> str:
    """Return the first line of a plugin's docstring.

    One of ours is read from its source, by a pattern: 85 modules take longer to import, or to parse, than all the rest
    of `plugins list`. A stranger's is imported, because only that tells whether it works.
    """
    file = plugin.file
    if file is None and plugin.target.startswith("posttrain_plugins."):
        file = registry.module_file(plugin.target.partition(":")[0])
    if file is None:
        doc = inspect.getdoc(plugin.load())
        return (doc or "").strip().partition("\n")[0]
    head = rf"^(?:class|(?:async +)?def) +{re.escape(plugin.attr)}\b"
    # The lines of a signature end in other signs than the colon; the docstring follows it at once.
    line = re.compile(head + r"(?:.*[^:\n]\n)*?.*:\n\s*[rR]?(?:\"\"\"|\"|')(.*?)(?:\"\"\"|\"|')?$", re.MULTILINE)
    found = line.search(file.read_text(encoding="utf-8", errors="replace"))
    return found[1].strip() if found else ""
