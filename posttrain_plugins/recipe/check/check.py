"""A document -> a checked `Recipe`, or every mistake in it at once, before anything heavy is imported.

Names are looked up in the registry, parameters are checked against each plugin's own signature, `args` against TRL's
config class (read from its source), references against what the recipe defines, and columns against the data's head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import RecipeErrors
from posttrain_plugins.recipe.check.adapters import check_merges
from posttrain_plugins.recipe.check.columns import check_columns
from posttrain_plugins.recipe.check.compatibility import check_handoffs
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.launch import check_launch
from posttrain_plugins.recipe.check.loops import unroll
from posttrain_plugins.recipe.check.model import read_model
from posttrain_plugins.recipe.check.order import in_order
from posttrain_plugins.recipe.check.references import SECTIONS, References, check_names
from posttrain_plugins.recipe.check.secrets import check_secrets
from posttrain_plugins.recipe.check.stage_validation import with_issues
from posttrain_plugins.recipe.check.stages import read_stage
from posttrain_plugins.recipe.check.training import check_training
from posttrain_plugins.recipe.plugin_schema import parse_call
from posttrain_plugins.recipe.read.document import Document, Keys
from posttrain_plugins.recipe.spec import External, Recipe

__all__ = ["check"]

TOP_LEVEL = ("name", "description", "seed", "launch", "model", *SECTIONS, "stages")


def check(document: Document) -> Recipe:
    """Checks a document and gives the recipe.

    Plugins that are installed classes are built, so that values that they refuse are told now; what is heavy belongs
    into their call.

    Raises:
        RecipeErrors: with every mistake found, each with its place.
    """
    # A name may stand above the stage that it names, so all stages are collected before anything is looked up. The
    # sections may name stages and the entries above them. Edges are known when references are, and columns, templates
    # and tokenizers are followed along the edges.
    checker = Checker(document)
    check_secrets(checker)
    name, seed = _head(checker)
    check_launch(checker)
    stages = unroll(checker)
    model = read_model(checker, stages)
    references = References(checker, stages, model)
    for section in SECTIONS:
        references.define(section)
    specs = {id: read_stage(checker, raw, references) for id, raw in stages.by_id.items() if id in stages.produces}
    specs = with_issues(checker, stages, specs)
    errors_before = len(checker.mistakes)
    ordered = in_order(checker, stages, specs)
    is_ordered = len(checker.mistakes) == errors_before  # what follows models back to where they start needs an end
    if is_ordered:  # in a circle no model has a first layer
        check_merges(checker, stages, specs)
    check_names(checker, stages, specs)
    check_columns(checker, stages, specs)
    check_handoffs(checker, stages, ordered)
    if is_ordered:
        more = check_training(checker, stages, {spec.id: spec for spec in ordered})
        ordered = tuple(replace(spec, warnings=(*spec.warnings, *more.get(spec.id, ()))) for spec in ordered)
    if checker.mistakes:
        raise RecipeErrors(checker.mistakes)
    # The plain values with each path absolute and each plugin with its package, for any folder and any machine. What a
    # text of the model stood for is known only now: a folder is one if it is there.
    data: dict[str, Any] = {"name": name, "seed": seed, **_with_owners(checker, checker.document.data, ())}
    if isinstance(model.source, External) and Path(model.source.path).is_absolute():
        written = data.get("model")
        data["model"] = {**(written if isinstance(written, dict) else {}), "model_name_or_path": model.source.path}
    return Recipe(name, seed, document.file, ordered, data)


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


def _with_owners(checker: Checker, value: Any, path: Keys) -> Any:
    """Return what stands at a path with `distribution:name` for every plugin, which no other package can take."""
    plugin = checker.uses.get(path)
    if plugin is not None and plugin.distribution:
        name = f"{plugin.distribution}:{plugin.name}"
        if isinstance(value, str):
            params = parse_call(value)[1]
            value = {"use": name, **params} if params else name
        else:
            value = {**value, "use": name}
    if isinstance(value, Mapping):
        return {key: _with_owners(checker, item, (*path, key)) for key, item in value.items()}
    return (
        [_with_owners(checker, item, (*path, i)) for i, item in enumerate(value)] if isinstance(value, list) else value
    )
