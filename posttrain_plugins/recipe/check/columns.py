"""The columns that stages and their rewards need, against those that the data is known to have."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError
from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.recipe import files
from posttrain_plugins.recipe.check.diagnostics import Checker, listed
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.plugin_schema import declared_columns, needed_columns, required_columns
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import DataFile, FromStage, Input, StageSpec, Use, flat
from posttrain_plugins.rows.read import place_of
from posttrain_plugins.rows.shape import check_rows

__all__ = ["check_columns", "columns_of"]


def check_columns(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> None:
    """Checks every stage, as far as columns can be known without loading data.

    Not of one whose references are wrong, which is told: what it needs may depend on them, as `sample`'s on its model.
    """
    for id, spec in specs.items():
        if not all(source for _, source in flat(spec.inputs)):
            continue
        path = stages.by_id[id].path
        _check_inputs(checker, path, spec, specs)
        columns: tuple[str, ...] | None = None
        with contextlib.suppress(InputError):  # told already, as an empty one is
            columns = columns_of(spec.inputs.get("dataset"), specs)
        # Rewards inside strategies too: a scorer that lacks its column would fail in the middle of a search.
        for _, source in spec.sources() if columns else ():
            needed = needed_columns(source) if isinstance(source, Use) and source.kind == "reward" else ()
            missing = [column for column in needed if column not in (columns or ())]
            if missing and columns:
                what = f"reward '{source.name}' needs {listed(missing)}, the data has {listed(columns)}"  # type: ignore[union-attr]
                hint = suggest(missing[0], columns) or "rename: {old: new} on the data set"
                checker.error((*path, "dataset"), f"missing column: {what}", hint)


def _check_inputs(checker: Checker, path: Keys, spec: StageSpec, specs: Mapping[str, StageSpec]) -> None:
    """Against the plugin's `requires_columns`: for each field, groups of columns one of which must be there."""
    try:
        required = required_columns(spec)
    except PLUGIN_FAILURES:  # the plugin boundary; `Checker.check_built` tells it
        return
    for name, alternatives in required.items():
        source = spec.inputs.get(name)
        try:
            columns = columns_of(source, specs)
        except InputError as error:
            checker.error((*path, name), error.message, error.hint)
            continue
        if columns == ():
            message = f"data set {getattr(spec.inputs[name], 'path', name)} is empty"
            checker.error((*path, name), message, "each line is one JSON object")
        elif columns is not None and not any(set(group) <= set(columns) for group in alternatives):
            wanted = " or ".join(" + ".join(f"'{c}'" for c in group) for group in alternatives)
            message = f"missing column: stage '{path[-1]}' needs {wanted}, the data has {listed(columns)}"
            checker.error((*path, name), message, "rename: {old: new} on the data set")
        elif columns is not None and isinstance(source, DataFile) and source.is_local:
            group = next(group for group in alternatives if set(group) <= set(columns))
            mistake = check_rows(files.head(Path(source.path), source.options) or (), {*group, "prompt"})
            if mistake is not None:
                place = place_of(Path(source.path), mistake.index)
                checker.error((*path, name), f"{place}: {mistake}", mistake.hint)


def columns_of(source: Input, specs: Mapping[str, StageSpec]) -> tuple[str, ...] | None:
    """The columns of a data set as far as they can be known without loading it, else None."""
    if isinstance(source, DataFile):
        return files.columns(Path(source.path), source.options) if source.is_local else None
    if isinstance(source, Use):
        return files.renamed(declared_columns(source), source.reserved)
    if isinstance(source, FromStage) and source.stage in specs:
        spec = specs[source.stage]
        earlier = {id: other for id, other in specs.items() if id != source.stage}  # a circle ends, it is told already
        own = declared_columns(spec)
        kept = columns_of(spec.inputs.get("dataset"), earlier)
        return None if own is None or kept is None else tuple(dict.fromkeys((*own, *kept)))
    return None
