"""Prints the JSON Schema of recipes, for editors (`posttrain schema`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["schema"]


def schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there instead of printing it.")] = None,
) -> None:
    """Print the JSON Schema of recipes, with the parameters of every installed plugin.

    `posttrain schema --out recipe.schema.json`

    then put this first into a recipe, and an editor with yaml-language-server (VS Code, Neovim, Zed ...) completes and
    checks it while you write:

    `# yaml-language-server: $schema=recipe.schema.json`

    Make it again after you install a plugin. `posttrain validate` checks more: references, columns, values.
    """
    from posttrain_plugins.recipe.describe.json_schema import recipe_schema

    text = json.dumps(recipe_schema(), indent=1) + "\n"
    if out is None:
        print(text, end="")
        return
    out.write_text(text, encoding="utf-8")
    # to stderr, as every message: stdout is for data
    print(f"{out}: put this first into a recipe:  # yaml-language-server: $schema={out}", file=sys.stderr)
