"""One registry: (kind, name) -> plugin. Lists from installed metadata without importing; imports on use.

A plugin is named in one of four ways:

- `brevity`                      its entry-point name
- `posttrain-brevity:brevity`    distribution and name, where two packages give the same name
- `package.module:attr`          any importable object
- `./my_reward.py:attr`          an object in a file, relative to the recipe (or to the working directory)

`POSTTRAIN_DISABLE_PLUGINS=name,distribution` switches plugins off.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain_plugins.errors import InputError, PluginBroken, PluginConflict, PluginNotFound
from posttrain_plugins.types import KINDS, Kind

__all__ = ["Plugin", "find", "group", "installed", "load", "suggest"]

PLURAL = {"reward": "rewards", "adapter": "adapters", "strategy": "strategies", "dataset": "datasets", "stage": "stages"}


@dataclass(frozen=True)
class Plugin:
    """Where a plugin lives; nothing of it is imported until `load`.

    Args:
        kind: one of the five kinds.
        name: what a recipe calls it.
        target: `module:attr`, or `file.py:attr` with an absolute path.
        distribution: the package that declares it; empty for a module or a file named in place.
        version: that package's version.
    """

    kind: Kind
    name: str
    target: str
    distribution: str = ""
    version: str = ""

    @property
    def file(self) -> Path | None:
        """The source file of a plugin named as `./file.py:attr`, else None."""
        path = self.target.rpartition(":")[0]
        return Path(path) if path.endswith(".py") else None

    @property
    def attr(self) -> str:
        return self.target.rpartition(":")[2]

    def load(self) -> Any:
        """Imports the module and returns the object.

        Raises:
            PluginBroken: the import failed, or the module has no such object; the cause is chained.
        """
        try:
            return _import(self.target)
        except Exception as cause:  # the plugin boundary: any failure is this plugin's own
            where = f", from {self.distribution} {self.version}" if self.distribution else ""
            raise PluginBroken(
                f"{self.kind} plugin '{self.name}' ({self.target}{where}) cannot be loaded: "
                f"{type(cause).__name__}: {cause}",
                hint=f"fix or remove it, or switch it off: POSTTRAIN_DISABLE_PLUGINS={self.name}",
            ) from cause


def group(kind: Kind | str) -> str:
    """The entry-point group of a kind; its name is the contract's version."""
    return f"posttrain_plugins.{PLURAL.get(kind, kind)}"


@cache
def installed(kind: Kind) -> tuple[Plugin, ...]:
    """All installed plugins of a kind, by name and distribution, without importing any of them."""
    disabled = _disabled()
    found = {
        Plugin(kind, entry.name, entry.value.replace(" ", ""), entry.dist.name, entry.dist.version)
        for entry in importlib.metadata.entry_points(group=group(kind))
        if entry.dist is not None and not disabled & {entry.name, entry.dist.name}
    }
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.distribution)))


def find(kind: Kind, use: str, folder: Path | None = None) -> Plugin:
    """The plugin that `use` names, without importing it.

    Args:
        kind: one of the five kinds.
        use: one of the four forms of the module docstring.
        folder: what `./file.py:attr` is relative to; the working directory by default.

    Raises:
        PluginNotFound: nothing has that name; near names are suggested.
        PluginConflict: two distributions give it.
    """
    head, colon, tail = use.rpartition(":")
    if colon and head.endswith(".py"):
        return _in_file(kind, use, (folder or Path.cwd()) / head, tail)
    matches = [p for p in installed(kind) if use in (p.name, f"{p.distribution}:{p.name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        owners = " and ".join(f"{p.distribution} {p.version}" for p in matches)
        raise PluginConflict(
            f"{kind} '{use}' is given by {owners}",
            hint="name one of them: " + " or ".join(f"'{p.distribution}:{p.name}'" for p in matches),
        )
    if colon and _is_module(head):
        return Plugin(kind, tail, use)
    raise _not_found(kind, use)


def load(kind: Kind, use: str, folder: Path | None = None) -> Any:
    """Finds a plugin and imports it; see `find` and `Plugin.load`."""
    return find(kind, use, folder).load()


def suggest(name: str, known: Iterable[str]) -> str | None:
    """A hint with the nearest known name, or None where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else None


def import_file(path: Path) -> ModuleType:
    """Imports a `.py` file under a name of its own, once; files beside it are importable from it."""
    path = path.resolve()
    name = f"posttrain_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_object(target: str, folder: Path | None = None) -> Any:
    """The object that `package.module:attr` or `./file.py:attr` names.

    Raises:
        InputError: it cannot be imported.
    """
    head, _, attr = target.rpartition(":")
    try:
        return _import(f"{(folder or Path.cwd()) / head}:{attr}" if head.endswith(".py") else target)
    except Exception as cause:
        raise InputError(f"'{target}' cannot be imported: {type(cause).__name__}: {cause}") from cause


def _import(target: str) -> Any:
    head, _, attr = target.rpartition(":")
    value: Any = import_file(Path(head)) if head.endswith(".py") else importlib.import_module(head)
    for part in attr.split("."):
        value = getattr(value, part)
    return value


def _in_file(kind: Kind, use: str, path: Path, attr: str) -> Plugin:
    if not path.is_file():
        raise PluginNotFound(f"{kind} '{use}': no file {path}")
    source = path.read_text(encoding="utf-8")
    if not re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(attr)}\b|^{re.escape(attr)}\s*[:=]|\b{re.escape(attr)}\b",
                     source, re.MULTILINE):
        names = re.findall(r"^(?:async\s+def|def|class)\s+(\w+)", source, re.MULTILINE)
        raise PluginNotFound(f"{kind} '{use}': {path.name} has no '{attr}'", hint=suggest(attr, names))
    return Plugin(kind, attr, f"{path.resolve()}:{attr}")


def _not_found(kind: Kind, use: str) -> PluginNotFound:
    known = [plugin.name for plugin in installed(kind)]
    elsewhere = [other for other in KINDS if other != kind and use in {p.name for p in installed(other)}]
    hint = suggest(use, known) or (f"'{use}' is a {elsewhere[0]}" if elsewhere else None)
    return PluginNotFound(f"no {kind} plugin '{use}'", hint=hint or f"posttrain plugins list --kind {kind}")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _disabled() -> set[str]:
    return {part.strip() for part in os.environ.get("POSTTRAIN_DISABLE_PLUGINS", "").split(",") if part.strip()}
