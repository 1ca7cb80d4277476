"""Chat templates by name, by file or by `package.module:attr`; looked up without importing anything of the user's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.plugins.source import package_file
from posttrain_plugins.recipe import files
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.local_paths import existing_object
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import Object, Source

__all__ = ["read_template", "template_text", "templates"]

OURS = {
    "chatml": "posttrain_plugins.models.training_templates:CHATML",
    "chatml_training": "posttrain_plugins.models.training_templates:CHATML_TRAINING",
    "tiny_world": "posttrain_plugins.tiny_world.tokenizer:CHAT_TEMPLATE",
}
NAME = re.compile(r"[\w-]+")


def templates() -> dict[str, str]:
    """Name -> where it is: TRL's own templates (`qwen3`, `llama3_training` ...), `chatml` and `tiny_world`."""
    folder = package_file("trl").parent / "chat_templates"
    return {**OURS, **{file.stem: str(file) for file in sorted(folder.glob("*.jinja"))}}


def read_template(checker: Checker, value: Any, path: Keys) -> Source:
    """The template that a recipe names, or None after telling what is wrong."""
    if isinstance(value, str) and NAME.fullmatch(value) and not files.exists(checker.folder / value):
        known = templates()
        if value in known:
            return Object(known[value])
        hint = suggest(value, known) or "tiny_world, qwen3, llama3 ...; a Jinja file, or package.module:attr"
        checker.error(path, f"no chat template is named '{value}'", hint)
        return None
    return existing_object(checker, value, path)


def template_text(template: Source) -> str | None:
    """What it says; None where that would take an import of the user's code."""
    if not isinstance(template, Object):
        return None
    try:
        if ":" in template.target:
            is_ours = template.target.startswith("posttrain_plugins.")
            return str(registry.import_object(template.target)) if is_ours else None
        return Path(template.target).read_text(encoding="utf-8")
    except (InputError, OSError, UnicodeDecodeError):  # told where it is read
        return None
