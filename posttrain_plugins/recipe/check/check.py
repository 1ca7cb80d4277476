"""A document -> a checked `Recipe`, or every mistake in it at once, before anything heavy is imported.

Names are looked up in the registry, parameters are checked against each plugin's own signature, `args` against TRL's
config class (read from its source), references against what the recipe defines, and columns against the data's head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain_plugins.errors import RecipeErrors
from posttrain_plugins.recipe.check.adapters import check_merges
from posttrain_plugins.recipe.check.columns import check_columns
from posttrain_plugins.recipe.check.compatibility import check_handoffs
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import unroll
from posttrain_plugins.recipe.check.model import Model, read_model
from posttrain_plugins.recipe.check.order import in_order
from posttrain_plugins.recipe.check.references import SECTIONS, References, check_names
from posttrain_plugins.recipe.check.stage_validation import with_issues
from posttrain_plugins.recipe.check.stages import read_stage
from posttrain_plugins.recipe.read.document import Document
from posttrain_plugins.recipe.spec import External, Recipe

__all__ = ["check"]

TOP_LEVEL = ("name", "description", "seed", "model", *SECTIONS, "stages")


def check(document: Document) -> Recipe:
    """Checks a document and gives the recipe.

    Plugins that are installed classes are built, so that values that they refuse are told now; what is heavy belongs
    into their call.

    Raises:
        RecipeErrors: with every mistake found, each with its place.
    """
    checker = Checker(document)
    name, seed = _head(checker)
    stages = unroll(checker)
    model = read_model(checker, stages)
    references = References(checker, stages, model)
    for section in SECTIONS:
        references.define(section)
    specs = {id: read_stage(checker, raw, references) for id, raw in stages.by_id.items() if id in stages.produces}
    specs = with_issues(checker, stages, specs)
    errors_before = len(checker.mistakes)
    ordered = in_order(checker, stages, specs)
    if len(checker.mistakes) == errors_before:  # in a circle no model has a first layer
        check_merges(checker, stages, specs)
    check_names(checker, stages, specs)
    check_columns(checker, stages, specs)
    check_handoffs(checker, stages, ordered)
    if checker.mistakes:
        raise RecipeErrors(checker.mistakes)
    return Recipe(name, seed, document.file, ordered, _resolved(checker, name, seed, model))


def _head(checker: Checker) -> tuple[str, int]:
    """The recipe's name, by default its file's, and its seed."""
    data = checker.document.data
    for name in checker.document.shared - set(
        TOP_LEVEL
    ):  # written once, under a name of its own, to be merged elsewhere
        data.pop(name, None)
    checker.unknown_keys((), data, TOP_LEVEL)
    name = checker.typed(("name",), str, checker.document.file.stem)
    checker.check_name(("name",), str(name), "recipe", allowed=".")
    return name, checker.typed(("seed",), int, 0)


def _resolved(checker: Checker, name: str, seed: int, model: Model) -> dict[str, Any]:
    """The plain values with every path made absolute, so that they give the same run from any folder."""
    data: dict[str, Any] = {"name": name, "seed": seed, **checker.document.data}
    written = data.get("model")
    if isinstance(model.source, External) and Path(model.source.path).is_absolute():
        data["model"] = {**(written if isinstance(written, dict) else {}), "model_name_or_path": model.source.path}
    return data
