"""The source of a plugin as a hash: its module, and what that imports from its own package or folder.

Comments and docstrings do not count. Of this package, what only reads recipes and shows results does not either: a
built-in stage would otherwise be made again because a message of `validate` changed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from posttrain_plugins.plugins.registry import Plugin

__all__ = ["CORE", "module_file", "plugin_hash", "sha256_of", "source_hash"]

CORE = frozenset(
    ("errors.py", "types", "plugins", "__init__.py", "recipe", "cli", "testing", "checkpoints.py", "rows", "api.py")
)
"""Rooms of this package that change no stage's result; a test compares them with the disk."""


def sha256_of(value: Any) -> str:
    """The hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def plugin_hash(plugin: Plugin) -> str:
    """The source of a plugin's module and of what it imports from its own package."""
    if plugin.file is not None:
        return source_hash(plugin.file)
    file = module_file(plugin.target.partition(":")[0])
    if file is None:
        return f"{plugin.distribution} {plugin.version}"
    return source_hash(file, package=plugin.target.partition(":")[0].partition(".")[0])


def module_file(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def source_hash(file: Path, package: str = "") -> str:
    """The hash of a file and of what it imports from its own package or folder, comments and docstrings left out.

    A process reads a package once, as it imports it once; a file that is named in place is read again.

    Args:
        file: a module's source.
        package: the module's top-level package; empty for a file that is named in place, which has its folder.
    """
    return _package_hash(file.resolve(), package) if package else _hash_from(file.resolve(), file.resolve().parent, "")


@cache
def _package_hash(file: Path, package: str) -> str:
    return _hash_from(file, _package_folder(file, package), package)


def _hash_from(file: Path, root: Path, package: str) -> str:
    pending, found = [file], dict[str, str]()
    while pending:
        current = pending.pop()
        name = os.path.relpath(current, root)
        if name in found:
            continue
        tree = ast.parse(current.read_bytes())
        pending.extend(path for path in _own_imports(tree, current, root, package) if not _is_core(path, root))
        found[name] = hashlib.sha256(ast.unparse(_without_docstrings(tree)).encode()).hexdigest()
    return sha256_of(found)


def _package_folder(file: Path, package: str) -> Path:
    """The folder of the top-level package; of a module without one, the module's own file, which holds nothing else."""
    return next((folder for folder in file.parents if folder.name == package), file)


def _is_core(path: Path, root: Path) -> bool:
    return root.name == "posttrain_plugins" and path.relative_to(root).parts[0] in CORE


def _own_imports(tree: ast.Module, file: Path, root: Path, package: str) -> Iterator[Path]:
    for level, module, name in _imports(tree):
        parts = module.split(".") if module else []
        if level:
            folder = file.parents[level - 1]
        elif not package:
            folder = root
        elif parts[0] == package:
            folder, parts = root, parts[1:]
        else:
            continue
        found = _candidates(folder.joinpath(*parts), name)
        yield from (path for path in found if path.is_file() and path.is_relative_to(root))


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Level, module and name of every import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, node.module or "", alias.name) for alias in node.names)


def _candidates(path: Path, name: str) -> list[Path]:
    inner = [path / f"{name}.py", path / name / "__init__.py"] if name else []
    return [*inner, path.with_suffix(".py"), path / "__init__.py"]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
    return tree
