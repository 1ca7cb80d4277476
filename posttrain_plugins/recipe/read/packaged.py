"""Recipes by name: those that installed packages carry, ours among them.

An entry point of the group `posttrain_plugins.recipes` names a package whose `*.yaml` files are recipes. In an editable
install ours lie in `recipes/` beside the package. Nothing is imported.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import suggest

__all__ = ["find_recipe", "owner_of", "packaged_recipes"]


def packaged_recipes() -> dict[str, Path]:
    """Return name -> file of every packaged recipe; `gpu/qlora_8b` for one in a folder."""
    found: dict[str, Path] = {}
    for folder, _ in _folders():
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
    for folder, _ in () if ".." in name or file.is_absolute() else _folders():  # a right name needs no list of them all
        found = folder / f"{name}.yaml"
        if found.is_file() and not found.name.startswith("_"):
            return found
    known = packaged_recipes()
    hint = suggest(name, known) or f"packaged ones: {', '.join(known)}"
    raise InputError(f"no recipe '{name}': neither a file nor a packaged one", hint=hint)


@cache
def owner_of(file: Path) -> str:
    """Return the distribution that carries a recipe's file; empty for a file of the user's."""
    return next((distribution for folder, distribution in _folders() if file.is_relative_to(folder)), "")


def _folders() -> list[tuple[Path, str]]:
    """Return each folder of recipes with its distribution; in a checkout, ours is `recipes/` beside our package."""
    found: list[tuple[Path, str]] = []
    for entry_group, _, package, distribution, _ in sorted(registry.entry_points(), key=lambda row: row[1]):
        top, *rest = package.split(".")
        spec = importlib.util.find_spec(top) if entry_group == registry.group("recipes") and rest else None
        if spec is not None and spec.origin is not None:
            home = Path(spec.origin).parent
            folders = (home.joinpath(*rest), home.parent.joinpath(*rest))
            found += [(folder.resolve(), distribution) for folder in folders if folder.is_dir()][:1]
    return found
