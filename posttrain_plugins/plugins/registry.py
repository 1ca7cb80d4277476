"""One registry: (kind, name) -> plugin. Lists from installed metadata without importing; imports on use.

A plugin is named in one of four ways:

- `brevity`                      its entry-point name
- `posttrain-brevity:brevity`    distribution and name, where two packages give the same name
- `package.module:attr`          any importable object
- `./my_reward.py:attr`          an object in a file, relative to the recipe (or to the working directory)

`POSTTRAIN_DISABLE_PLUGINS=name,distribution` switches plugins off.
"""

from __future__ import annotations

import contextlib
import importlib
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

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError, PluginBroken, PluginConflict, PluginNotFound
from posttrain_plugins.types.plugins import KINDS, Kind

__all__ = ["Plugin", "entry_points", "find", "group", "installed", "load", "module_file", "own_name", "suggest"]

FILE_MODULE = "posttrain_file_"
"""Prefix of the name of a module that was imported from a file named in place."""

PLURAL: dict[str, str] = {**{kind: f"{kind}s" for kind in KINDS}, "strategy": "strategies"}


@dataclass(frozen=True)
class Plugin:
    """Where a plugin lives; nothing of it is imported until `load`.

    Args:
        kind: one of the six kinds.
        name: its name in a recipe.
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
        """Return the source file of a plugin named as `./file.py:attr`, else None."""
        path = self.target.rpartition(":")[0]
        return Path(path) if path.endswith(".py") else None

    @property
    def attr(self) -> str:
        return self.target.rpartition(":")[2]

    def load(self) -> Any:
        """Import the module and return the object.

        Raises:
            PluginBroken: the import failed, or the module has no such object; the cause is chained.
        """
        try:
            return _import(self.target)
        except KeyboardInterrupt:
            raise
        except BaseException as cause:  # the plugin boundary: a package that is broken hurts its own names only
            where = f", from {self.distribution} {self.version}" if self.distribution else ""
            switch = f"fix or remove it, or switch it off: POSTTRAIN_DISABLE_PLUGINS={self.name}"
            raise PluginBroken(
                f"{self.kind} plugin '{self.name}' ({self.target}{where}) cannot be loaded: "
                f"{type(cause).__name__}: {cause}",
                hint=switch if self.distribution else None,
            ) from cause


def group(kind: Kind | str) -> str:
    """Return the entry-point group of a kind; its name is the contract's version."""
    return f"posttrain_plugins.{PLURAL.get(kind, kind)}"


@cache
def installed(kind: Kind) -> tuple[Plugin, ...]:
    """Return all installed plugins of a kind, by name and distribution, without importing any of them."""
    listed = os.environ.get("POSTTRAIN_DISABLE_PLUGINS", "").split(",")
    disabled = {_normal(part.strip()) for part in listed if part.strip()}
    plugins = {Plugin(kind, *row) for entry_group, *row in entry_points() if entry_group == group(kind)}
    found = [plugin for plugin in plugins if not disabled & {_normal(plugin.name), _normal(plugin.distribution)}]
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.distribution)))


@cache
def entry_points() -> tuple[tuple[str, str, str, str, str], ...]:
    """Return group, name, target, distribution and version of every entry point of ours.

    The files are those that `importlib.metadata` reads. It takes longer to import and to parse them all than a command
    that only lists may take, so only the files of packages that name our groups are read to the end.
    """
    found: dict[str, list[tuple[str, str, str, str, str]]] = {}
    for folder in dict.fromkeys(sys.path):
        infos: list[Path] = []
        with contextlib.suppress(OSError):  # a zip file, or gone
            infos = sorted(p for p in Path(folder or ".").iterdir() if p.suffix in (".dist-info", ".egg-info"))
        for info in infos:
            text = ""
            with contextlib.suppress(OSError):  # most have none; an `.egg-info` may be a file
                text = (info / "entry_points.txt").read_text(encoding="utf-8", errors="replace")
            if "posttrain_plugins." not in text:
                continue
            metadata = info / ("METADATA" if info.suffix == ".dist-info" else "PKG-INFO")
            fields = dict(re.findall(r"^(Name|Version): *(.*\S)", metadata.read_text("utf-8", "replace"), re.MULTILINE))
            name, version = fields.get("Name", "unknown"), fields.get("Version", "")
            rows, section = [], ""
            for line in map(str.strip, text.splitlines()):
                if line.startswith("["):
                    section = line.strip("[]")
                elif "=" in line and section.startswith("posttrain_plugins.") and line[0] not in "#;":
                    key, _, value = line.partition("=")
                    rows.append((section, key.strip(), value.replace(" ", ""), name, version))
            # a distribution that stands twice on the path counts where it stands first, as for an import
            found.setdefault(_normal(name), rows)
    return tuple(row for rows in found.values() for row in rows)


def find(kind: Kind, use: str, folder: Path | None = None) -> Plugin:
    """Return the plugin that `use` names, without importing it.

    Args:
        kind: one of the six kinds.
        use: one of the four forms of the module docstring.
        folder: the folder that `./file.py:attr` is relative to; the working directory by default.

    Raises:
        PluginNotFound: nothing has that name; near names are suggested.
        PluginConflict: two distributions give it.
    """
    head, colon, tail = use.rpartition(":")
    if colon and head.endswith(".py"):
        path = (folder or Path.cwd()) / head
        try:
            is_file = path.is_file()
        except (OSError, ValueError):  # no file can have such a name
            is_file = False
        if not is_file:
            raise PluginNotFound(f"{kind} '{use}': no file {path}")
        require_name(f"{kind} '{use}'", path, tail)
        return Plugin(kind, tail, f"{path.resolve()}:{tail}")
    owned = (_normal(head), tail)
    matches = [p for p in installed(kind) if use == p.name or owned == (_normal(p.distribution), p.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:  # never "the last one wins": what a recipe means must not hang on the order of installation
        owners = " and ".join(f"{p.distribution} {p.version}" for p in matches)
        raise PluginConflict(
            f"{kind} '{use}' is given by {owners}",
            hint="name one of them: " + " or ".join(f"'{p.distribution}:{p.name}'" for p in matches),
        )
    if colon and is_module(head):  # after the entry points: `distribution:name` looks the same, and is more common
        return Plugin(kind, tail, use)
    raise _not_found(kind, use)


def module_file(name: str) -> Path | None:
    """Return the source file of a module, which is not imported; its packages are."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def own_name(kind: Kind, use: str, distribution: str) -> str:
    """Return what a plain name means in what a distribution carries: its own plugin first.

    Without this, a package that takes the name of a built-in would break every packaged recipe that uses it.

    Args:
        kind: one of the six kinds.
        use: as a recipe writes it.
        distribution: which carries the recipe, or the plugin whose default this is; empty for the user.

    Returns:
        `distribution:name` if others give the name too, else `use` itself.
    """
    owners = [plugin.distribution for plugin in installed(kind) if plugin.name == use]
    return f"{distribution}:{use}" if len(owners) > 1 and distribution in owners else use


def load(kind: Kind, use: str, folder: Path | None = None) -> Any:
    """Find a plugin and import it; see `find` and `Plugin.load`."""
    return find(kind, use, folder).load()


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Return a hint with the nearest known name, or None if none is near."""
    import difflib  # here and below: `plugins list` and `validate` do without

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else None


def with_article(noun: str) -> str:
    """Return `an adapter`, `a model`, `figures`."""
    return noun if noun.endswith("s") else f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def import_file(path: Path) -> ModuleType:
    """Import a `.py` file under a name of its own; again, with what it imports beside it, when any was edited."""
    import hashlib

    path = path.resolve()
    # the path in the name, because two recipes may have a `my_reward.py` each; the content, for an edited one
    stem = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_"
    times = [file.stat().st_mtime_ns for file in sorted(path.parent.glob("*.py"))]
    name = stem + hashlib.sha256(repr(times).encode() + path.read_bytes()).hexdigest()[:8]
    if name in sys.modules:
        return sys.modules[name]
    if any(known.startswith(stem) for known in sys.modules):  # what it imports beside it may have been edited
        for known, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and Path(file).parent == path.parent and known != "__main__":
                del sys.modules[known]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look up their module there
    # what it imports beside it is found as for a script
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:  # after Ctrl-C too: the next import must not find half a module
        del sys.modules[name]
        raise
    return module


def import_object(target: str, folder: Path | None = None) -> Any:
    """Return the object that `package.module:attr` or `./file.py:attr` names.

    Raises:
        InputError: it cannot be imported.
    """
    head, _, attr = target.rpartition(":")
    try:
        return _import(f"{(folder or Path.cwd()) / head}:{attr}" if head.endswith(".py") else target)
    except PLUGIN_FAILURES as cause:
        raise InputError(f"'{target}' cannot be imported: {type(cause).__name__}: {cause}") from cause


def _import(target: str) -> Any:
    head, _, attr = target.rpartition(":")
    # What a module prints as it is imported is a message: among a command's data it would spoil the JSON.
    with contextlib.redirect_stdout(sys.stderr):
        value: Any = import_file(Path(head)) if head.endswith(".py") else importlib.import_module(head)
    for part in attr.split("."):
        value = getattr(value, part)
    return value


def require_name(what: str, file: Path, name: str) -> None:
    """Look for a name in a source file, which is not imported.

    Raises:
        PluginNotFound: it does not stand there; near names are suggested.
    """
    # the word anywhere will do: a name may come from a call, a loop or an import that no pattern foresees
    source = file.read_text(encoding="utf-8", errors="replace")
    if not re.search(rf"\b{re.escape(name)}\b", source):
        defined = re.findall(r"^(?:async\s+def\s+|def\s+|class\s+)?(\w+)\s*[(:=]", source, re.MULTILINE)
        raise PluginNotFound(f"{what}: {file.name} has no '{name}'", hint=suggest(name, defined))


def _not_found(kind: Kind, use: str) -> PluginNotFound:
    known = [f"{p.distribution}:{p.name}" if ":" in use else p.name for p in installed(kind)]
    # a plugin of another kind with this very name is a better guess than a near name of this kind
    elsewhere = [other for other in KINDS if other != kind and use in {p.name for p in installed(other)}]
    hint = f"'{use}' is {with_article(elsewhere[0])}" if elsewhere else suggest(use, known)
    return PluginNotFound(f"no {kind} plugin '{use}'", hint=hint or f"posttrain plugins list --kind {kind}")


def is_module(name: str) -> bool:
    """Is the module's top-level package there? Looking further would import that package."""
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _normal(name: str) -> str:
    """Write `Posttrain_Brevity` as `posttrain-brevity`: they are one distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
