"""What a check is written on: the document, the mistakes so far, and the small checks that every part of it makes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError, Mistake, PosttrainError
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import Plugin, suggest, with_article
from posttrain_plugins.plugins.schema import Field, Schema, accepts, type_name
from posttrain_plugins.recipe.build import construct
from posttrain_plugins.recipe.plugin_schema import plugin_schema
from posttrain_plugins.recipe.read.document import Document, Keys, anchored
from posttrain_plugins.recipe.read.packaged import owner_of
from posttrain_plugins.types import Kind

__all__ = ["Checker", "listed"]

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class Checker:
    """A document under check. Its checks tell what is wrong and go on, so that all mistakes are found at once.

    Args:
        document: as it was read; the checker's own has absolute paths.
    """

    def __init__(self, document: Document) -> None:
        self.folder = document.file.parent.resolve()
        self.document = replace(document, data=anchored(document.data, self.folder))
        self.mistakes: list[Mistake] = list(document.mistakes)
        self.schemas: dict[Plugin, Schema | None] = {}  # None: it cannot be read, which is told already
        self.uses: dict[Keys, Plugin] = {}  # by the place of the name or mapping, to write `distribution:name` there
        self.owners: dict[Keys, str] = {}  # a field that a plugin's default fills -> that plugin's distribution

    def error(self, path: Keys, message: str, hint: str | None = None, of_key: bool = False) -> None:
        """Notes a mistake in the value at a path, or in its key."""
        self.mistakes.append(self.document.place(path, of_key).mistake(message, hint))

    def has_error(self, path: Keys, count: int) -> bool:
        """Tell whether one of the first `count` mistakes is of the value at a path, if there is one."""
        if self.document.get(path) is None:
            return False  # its place is that of what it would stand in
        here = self.document.place(path)
        found = ((mistake.file, mistake.line, mistake.column) for mistake in self.mistakes[:count])
        return (here.file, here.line, here.column) in found

    # --- values ---------------------------------------------------------------------------------------------------

    def typed(self, path: Keys, kind: type, default: Any) -> Any:
        """The value at a path, checked."""
        value = self.document.get(path)
        if value is None:
            return default
        self.check_type(path, kind, value)
        return value

    def mapping(self, path: Keys) -> Mapping[str, Any]:
        """The mapping at a path; an empty one where there is none."""
        value = self.document.get(path)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.error(path, f"'{path[-1]}' is {value!r}, expected a mapping")
            return {}
        return value

    def check_type(self, path: Keys, kind: Any, value: Any) -> None:
        if not accepts(kind, value):
            self.error(path, f"'{path[-1]}' is {value!r}, expected {type_name(kind)}")

    def check_field(self, path: Keys, field: Field, value: Any) -> None:
        """Also an annotation that forgets its default None."""
        if value is not None or field.default is not None or not field.is_literal:
            self.check_type(path, field.type, value)

    def check_option(self, path: Keys, value: Any, known: Mapping[str, Field], what: str) -> None:
        """A field of a config class, whose name is the last key of the path."""
        name = str(path[-1])
        if name in known:
            self.check_field(path, known[name], value)
        else:
            self.error(path, f"unknown key '{name}' in {what}", suggest(name, known), True)

    # --- names and keys -------------------------------------------------------------------------------------------

    def check_name(self, path: Keys, name: str, what: str, allowed: str = "") -> None:
        """Names become folders, and a loop's stages are told apart by dots."""
        if not NAME.fullmatch("".join(c for c in name if c not in allowed)):
            message = f"{what} name '{name}' has other characters than letters, digits, '_' and '-'"
            self.error(path, message, "rename it", of_key=what == "stage")

    def check_keys(
        self, path: Keys, given: Mapping[str, Any], found: Schema, what: str, also: Iterable[str] = ()
    ) -> None:
        """A plugin gets every parameter that it needs, and none that it does not know."""
        if not found.is_open:
            for key in given:
                if key not in found.fields:
                    hint = suggest(key, [*found.fields, *also]) or (
                        listed(found.fields, "it takes ") if found.fields else "it takes no parameters"
                    )
                    self.error((*path, key), f"unknown key '{key}' in {what}", hint, True)
        for name, field in found.fields.items():
            if field.is_required and name not in given:
                self.error(path, f"{what} needs '{name}' ({type_name(field.type)})")

    def unknown_keys(self, path: Keys, given: Mapping[str, Any], known: Iterable[str]) -> None:
        known = list(known)
        for key in given:
            if key not in known:
                self.error((*path, key), f"unknown key '{key}'", suggest(key, known) or listed(known, "known: "), True)

    # --- plugins --------------------------------------------------------------------------------------------------

    def plugin(self, kind: Kind, use: Any, path: Keys) -> tuple[Plugin, Schema] | None:
        """The plugin that `use` names, and what it takes."""
        if not isinstance(use, str):
            message = f"{with_article(kind)} needs 'use', the name of a plugin"
            self.error(path, message, f"posttrain plugins list --kind {kind}")
            return None
        try:
            plugin = self.find(kind, use, path)
        except InputError as error:
            self.error((*path, "use"), error.message, error.hint)
            return None
        self.uses[path] = plugin
        found = self.schema(plugin, path)
        return (plugin, found) if found is not None else None

    def find(self, kind: Kind, use: str, path: Keys) -> Plugin:
        """Return the plugin that is named at a path; a packaged recipe, and a plugin's default, mean their own first.

        Raises:
            PluginNotFound, PluginConflict: see `registry.find`.
        """
        default = next((owner for field, owner in self.owners.items() if path[: len(field)] == field), None)
        place = self.document.place(path)  # one with no line is an override, which stands in the recipe that it changes
        file = Path(place.file) if place.line else self.document.file
        distribution = owner_of(file.resolve()) if default is None else default
        return registry.find(kind, registry.own_name(kind, use, distribution), self.folder)

    def schema(self, plugin: Plugin, path: Keys) -> Schema | None:
        """What a plugin takes, read once a check."""
        if plugin not in self.schemas:
            self.schemas[plugin] = None
            try:
                self.schemas[plugin] = plugin_schema(plugin)
            except PosttrainError as error:
                self.error((*path, "use"), error.message, error.hint)
            except (LookupError, SyntaxError, ValueError) as error:
                self.error((*path, "use"), f"{plugin.kind} '{plugin.name}' cannot be read: {error}")
            except PLUGIN_FAILURES as error:  # the plugin boundary: importable, but something else than a plugin
                cause = f"{type(error).__name__}: {error}"
                self.error((*path, "use"), f"'{plugin.target}' is no {plugin.kind} plugin: {cause}")
        return self.schemas[plugin]

    def check_built(self, plugin: Plugin, params: Mapping[str, Any], path: Keys) -> None:
        """A class refuses values that fit their type; a file is not imported, a function is called only by the run."""
        loaded = plugin.load() if plugin.file is None else None
        if not isinstance(loaded, type):
            return
        try:
            construct(loaded, params)
        except PosttrainError as error:
            self.error(path, error.message, error.hint)
        except PLUGIN_FAILURES as cause:  # the plugin boundary
            self.error(path, f"{plugin.kind} '{plugin.name}' refuses its parameters: {type(cause).__name__}: {cause}")


def listed(names: Iterable[str], lead: str = "") -> str:
    """`'prompt', 'solution'`, at most twelve of them."""
    names = list(names)
    return lead + ", ".join(f"'{name}'" for name in names[:12]) + (" ..." if len(names) > 12 else "")
