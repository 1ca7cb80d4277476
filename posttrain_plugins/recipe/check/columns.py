"""The columns that stages and their rewards need, against those that the data is known to have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError
from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.recipe import files
from posttrain_plugins.recipe.check.diagnostics import Checker, listed
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.plugin_schema import declared_columns, needed_columns, required_columns
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import DataFile, FromStage, Input, Source, StageSpec, Use, flat
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
        for place, source in _data_of(spec):
            _check_rewards(checker, (*path, *place), spec, source, specs)


def _data_of(spec: StageSpec) -> Iterator[tuple[Keys, Source]]:
    """Yield every data set of a stage with its place: `dataset`, `eval_dataset`, `retain` 0."""
    names = [
        name for name, field in spec.schema.fields.items() if field.ref is not None and field.ref.kind == "dataset"
    ]
    for name in names or ["dataset"]:
        given = spec.inputs.get(name)
        several = enumerate(given) if isinstance(given, tuple) else ()
        yield from [((name, i), one) for i, one in several] or [((name,), given)]  # type: ignore[list-item]


def _check_rewards(checker: Checker, path: Keys, spec: StageSpec, data: Source, specs: Mapping[str, StageSpec]) -> None:
    """Check that prompts have the columns of the rewards that judge what is written to them.

    Rewards inside strategies too: a scorer that lacks its column would fail in the middle of a search.
    """
    columns: tuple[str, ...] | None = None
    with contextlib.suppress(InputError):  # told already, as an empty one is
        columns = columns_of(data, specs)
    # nothing is written to a text, so nobody judges what is
    for _, source in spec.sources() if columns and "text" not in columns else ():
        needed = needed_columns(source) if isinstance(source, Use) and source.kind == "reward" else ()
        missing = [column for column in needed if column not in (columns or ())]
        if missing and columns:
            what = f"reward '{source.name}' needs {listed(missing)}, the data has {listed(columns)}"  # type: ignore[union-attr]
            hint = suggest(missing[0], columns) or "rename: {old: new} on the data set"
            checker.error(path, f"missing column: {what}", hint)


def _check_inputs(checker: Checker, path: Keys, spec: StageSpec, specs: Mapping[str, StageSpec]) -> None:
    """Against the plugin's `requires_columns`: for each field, groups of columns one of which must be there."""
    try:
        required = required_columns(spec)
    except PLUGIN_FAILURES:  # the plugin boundary; `Checker.check_built` tells it
        return
    for name, alternatives in required.items():
        given = spec.inputs.get(name)
        if not isinstance(given, tuple):
            _check_input(checker, (*path, name), given, alternatives, specs)
            continue
        for number, source in enumerate(given):
            _check_input(checker, (*path, name, number), source, alternatives, specs)


def _check_input(
    checker: Checker, path: Keys, source: Source, alternatives: Any, specs: Mapping[str, StageSpec]
) -> None:
    try:
        columns = columns_of(source, specs)
    except InputError as error:
        checker.error(path, error.message, error.hint)
        return
    if columns == ():
        message = f"data set {getattr(source, 'path', path[-1])} is empty"
        checker.error(path, message, "each line is one JSON object")
    elif columns is not None and not any(set(group) <= set(columns) for group in alternatives):
        wanted = " or ".join(" + ".join(f"'{c}'" for c in group) for group in alternatives)
        stage = path[-3] if isinstance(path[-1], int) else path[-2]
        message = f"missing column: stage '{stage}' needs {wanted}, the data has {listed(columns)}"
        checker.error(path, message, "rename: {old: new} on the data set")
    elif columns is not None and isinstance(source, DataFile) and source.is_local:
        group = next(group for group in alternatives if set(group) <= set(columns))
        mistake = check_rows(files.head(Path(source.path), source.options) or (), {*group, "prompt"})
        if mistake is not None:
            place = place_of(Path(source.path), mistake.index)
            checker.error(path, f"{place}: {mistake}", mistake.hint)


def columns_of(source: Input, specs: Mapping[str, StageSpec]) -> tuple[str, ...] | None:
    """The columns of a data set as far as they can be known without loading it, else None."""
    if isinstance(source, DataFile):
        return files.columns(Path(source.path), source.options) if source.is_local else None
    if isinstance(source, Use):
        mixed = [known for _, part in flat(source.refs) for known in (columns_of(part, specs),)]
        own = declared_columns(source) if not mixed else _shared(mixed)
        return files.renamed(own, source.reserved)
    if isinstance(source, FromStage) and source.stage in specs:
        spec = specs[source.stage]
        earlier = {id: other for id, other in specs.items() if id != source.stage}  # a circle ends, it is told already
        own = declared_columns(spec)
        kept = columns_of(spec.inputs.get("dataset"), earlier)
        return None if own is None or kept is None else tuple(dict.fromkeys((*own, *kept)))
    return None


def _shared(known: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Return the columns that all parts of a data set have; None where one's are not known."""
    first, *others = known
    if first is None or None in others:
        return None
    return tuple(name for name in first if all(name in (other or ()) for other in others))
