"""The source of a plugin as a hash: its module, and what that imports from its own package or folder.

Comments and docstrings do not count. Of this package, what only reads recipes and shows results does not either: a
built-in stage would otherwise be made again because a message of `validate` changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from posttrain_plugins.plugins.registry import Plugin, module_file
from posttrain_plugins.recipe.read_source import Import, read_code, save_what_was_read

__all__ = ["CORE", "own_sources", "plugin_hash", "rows_hash", "sha256_of", "source_hash"]

CORE = frozenset(
    (
        *("__init__.py", "api.py", "checkpoints.py", "errors.py", "launch"),
        *("memory_plan", "plugins", "recipe", "record", "report", "rows", "types"),
    )
)
"""Rooms of this package that built-in plugins reach by imports and that change no stage's result.

What they decide is in a key by another way: `recipe` and `plugins` by the values that they read, `types` by the fields
that a stage sets, `rows` by `rows_hash`, `launch` by the number of processes and accelerate's file; `record` and
`report` tell of results and make none. A test compares this with what the plugins import.
"""
ROWS = ("recipe/run/data.py", "rows/formats.py", "rows/read.py")
"""What turns a file, a plugin's data set or a stage's rows into the rows that a stage is given.

`rows/shape.py` is not among them: it refuses rows, and changes none.
"""


def sha256_of(value: Any) -> str:
    """Return the hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def plugin_hash(plugin: Plugin) -> str:
    """Return the hash of a plugin's module and of what it imports from its own package."""
    if plugin.file is not None:
        return source_hash(plugin.file)
    module = plugin.target.partition(":")[0]
    file = module_file(module)
    # A module without Python source, such as a compiled one, counts by its release.
    return source_hash(file, module.partition(".")[0]) if file else f"{plugin.distribution} {plugin.version}"


@cache
def rows_hash(package: Path = Path(__file__).parents[1]) -> str:
    """Return the hash of what makes the rows of a data set, with its defaults, such as those of `types`.

    A converter that was mended gives other rows of the same file, and what was trained on the old ones is out of date.
    """
    return sha256_of([source_hash(package / name, package.name) for name in ROWS])


def source_hash(file: Path, package: str = "") -> str:
    """Return the hash of a file and of what it imports from its own package or folder, without comments and docstrings.

    Args:
        file: a module's source.
        package: the module's top-level package; empty for a file that is named in place, which has its folder.
    """
    # A process imports a package once, so it is read once, too. A file that is named in place may be edited between two
    # plans of one process, such as a notebook, and is read again.
    read = _read_once if package else own_sources
    return sha256_of(read(file.resolve(), package))


def own_sources(file: Path, package: str = "") -> dict[str, str]:
    """Return the hash of each file that counts as a plugin's source, by its path from the package or folder.

    Args:
        file: as for `source_hash`, resolved.
        package: as for `source_hash`.
    """
    # A module without a package has nothing below it: its neighbours in site-packages are other people's.
    # Names from the root, not absolute ones: a project that is moved, or installed elsewhere, keeps its results.
    root = next((folder for folder in file.parents if folder.name == package), file) if package else file.parent
    is_ours = root.name == "posttrain_plugins"
    # as for the whole: a package's files are read once in a process, those of a folder each time
    visit = _visit_once if package else _visit
    pending, found = [file], dict[str, str]()
    while pending:
        current = pending.pop()
        name = os.path.relpath(current, root)
        if name in found:
            continue
        found[name], imported = visit(current, root, package)
        pending += (path for path in imported if not (is_ours and path.relative_to(root).parts[0] in CORE))
    save_what_was_read()
    return found


_read_once = cache(own_sources)


def _visit(file: Path, root: Path, package: str) -> tuple[str, list[Path]]:
    """Return the hash of a file's code, and the files below `root` that it imports."""
    code, imports = read_code(file.read_bytes())
    return code, [path for one in imports for path in _meant(one, file, root, package)]


_visit_once = cache(_visit)


def _meant(imported: Import, file: Path, root: Path, package: str) -> Iterator[Path]:
    """Yield the files below `root` that an import may mean."""
    level, module, name = imported
    parts = module.split(".") if module else []
    if level:
        folder = file.parents[level - 1]
    elif not package:
        folder = root
    elif parts[0] == package:
        folder, parts = root, parts[1:]
    else:
        return
    # `from a.b import c` may mean the module c.py, the package c/, or a name in b.py or b/__init__.py.
    path = folder.joinpath(*parts)
    inside = [path / f"{name}.py", path / name / "__init__.py"] if name else []
    candidates = [*inside, path.with_suffix(".py"), path / "__init__.py"]
    yield from (found for found in candidates if found.is_file() and found.is_relative_to(root))
