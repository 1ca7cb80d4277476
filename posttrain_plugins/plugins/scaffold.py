"""Writes a package with one plugin that works at once (`posttrain plugins new`) from the files in `templates/`.

In these, `my_plugin` stands for the plugin's name, `MyPlugin` for its class and `my-plugin` for the distribution's, so
that they are Python and YAML as they are.
"""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import PLURAL, suggest
from posttrain_plugins.types import KINDS, Kind

__all__ = ["new_plugin"]

FUNCTIONS = ("adapter", "tool")
"""Kinds whose template is a function, named as the plugin."""
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MOST_CHARS = 40


def new_plugin(kind: str, name: str, into: Path = Path()) -> list[Path]:
    """Write the package `posttrain-NAME` with one plugin, its entry point, a recipe and a conformance test.

    Args:
        kind: reward, adapter, strategy, dataset, stage or tool.
        name: its name in recipes: lower-case words with underscores.
        into: the folder in which `posttrain-NAME/` is made.

    Returns:
        The files that were written.

    Raises:
        InputError: no such kind, a name that cannot be one or is taken, or the folder is there already: nothing is ever
            overwritten.
    """
    wanted = next((known for known in KINDS if kind in (known, PLURAL[known])), None)
    if wanted is None:
        raise InputError(f"no kind '{kind}' of plugin", hint=suggest(kind, KINDS) or f"one of {', '.join(KINDS)}")
    _check_name(wanted, name)
    folder = into / f"posttrain-{name.replace('_', '-')}"
    # all refusals before the first file is written: half a package would stand in the way of the next try
    if folder.exists():
        raise InputError(f"{folder} is there already", hint="choose another name, or --into another folder")
    if not into.is_dir():
        raise InputError(f"no folder {into}", hint=f"mkdir -p {into}")
    templates = Path(str(files("posttrain_plugins"))) / "templates"
    written = []
    for source in (templates / "common", templates / wanted):
        # in these folders a run of the tests leaves compiled files, which belong to no package
        for template in (path for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            file = folder / _filled(str(template.relative_to(source)), wanted, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_filled(template.read_text(encoding="utf-8"), wanted, name), encoding="utf-8")
            written.append(file)
    return sorted(written)


def _check_name(kind: Kind, name: str) -> None:
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > MOST_CHARS:
        near = re.sub(r"\W+|_+", "_", name).strip("_0123456789").lower()[:MOST_CHARS]
        hint = f"posttrain plugins new {kind} {near}" if NAME.fullmatch(near) else "for instance short_answers"
        message = f"'{name}' cannot name a plugin, expected lower-case words with underscores"
        raise InputError(message, hint=f"{hint}_{kind}" if keyword.iskeyword(near) else hint)
    taken = [p for p in registry.installed(kind) if p.name == name]
    if taken:
        message = f"{kind} '{name}' is given by {taken[0].distribution} {taken[0].version} already"
        raise InputError(message, hint=f"posttrain plugins new {kind} my_{name}")


def _filled(text: str, kind: Kind, name: str) -> str:
    class_name = "".join(word.capitalize() for word in name.split("_"))
    attr = name if kind in FUNCTIONS else class_name
    for old, new in (  # KINDS before KIND, which it contains
        ("KINDS", PLURAL[kind]),
        ("KIND", kind),
        ("ATTR", attr),
        ("MyPlugin", class_name),
        ("my_plugin", name),
        ("my-plugin", name.replace("_", "-")),
    ):
        text = text.replace(old, new)
    return text
