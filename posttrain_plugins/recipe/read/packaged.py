"""Recipes by name: those that installed packages carry, ours among them.

An entry point of the group `posttrain_plugins.recipes` names a package whose `*.yaml` files are recipes. In an editable
install ours lie in `recipes/` beside the package. Nothing is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins.registry import group, suggest

__all__ = ["find_recipe", "packaged_recipes"]


def packaged_recipes() -> dict[str, Path]:
    """Name -> file of every packaged recipe; `gpu/qwen3_qlora` for one in a folder."""
    found: dict[str, Path] = {}
    for entry in sorted(importlib.metadata.entry_points(group=group("recipes")), key=lambda e: e.name):
        for folder in _folders(entry.value):
            for file in sorted(folder.rglob("*.yaml")):
                if not file.name.startswith("_"):  # a part that others extend
                    found.setdefault(str(file.relative_to(folder).with_suffix("")), file)
    return found


def find_recipe(name: str) -> Path:
    """A recipe's file from its path or its packaged name.

    Raises:
        InputError: neither is there; near names are suggested.
    """
    file = Path(name)
    if file.suffix in (".yaml", ".yml") or file.is_file():
        if not file.is_file():
            raise InputError(f"no recipe file {name}", hint=f"packaged ones: {', '.join(packaged_recipes())}")
        return file
    known = packaged_recipes()
    if name in known:
        return known[name]
    hint = suggest(name, known) or f"packaged ones: {', '.join(known)}"
    raise InputError(f"no recipe '{name}': neither a file nor a packaged one", hint=hint)


def _folders(package: str) -> list[Path]:
    """The folder of a package without importing it; in a checkout, `recipes/` beside our package."""
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return []
    home = Path(spec.origin).parent
    return [folder for folder in (home.joinpath(*rest), home.parent.joinpath(*rest)) if rest and folder.is_dir()][:1]
