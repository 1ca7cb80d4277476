"""Data sets: a file, a folder, the Hub, a plugin or a stage's rows -> what a stage is given, checked row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe.build import build
from posttrain_plugins.recipe.spec import DataFile, FromStage, Input, Use
from posttrain_plugins.rows.formats import convert
from posttrain_plugins.rows.read import dataset_of_rows, place_of, read_rows
from posttrain_plugins.rows.shape import check_rows
from posttrain_plugins.text import to_messages

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["check_dataset", "dataset_of", "load_data_file", "read_jsonl"]

ROWS_AT_ONCE = 1000
LOADERS = {".parquet": "parquet", ".arrow": "arrow"}
"""Files that carry their types, which `datasets` reads; text is read by `rows/read.py`, which guesses none."""


def dataset_of(source: DataFile | Use, parts: Mapping[str, Any] | None = None) -> Dataset:
    """What a data set's plugin makes, or a file or Hub data set, with its options applied.

    Args:
        source: what the recipe names.
        parts: what the plugin's fields refer to, resolved, such as the data sets of a mix.

    Raises:
        InputError: as `load_data_file`, or the plugin refuses its parameters.
    """
    if isinstance(source, DataFile):
        return load_data_file(source)
    return _with_options(build(source, parts), source.reserved, source.name)


def load_data_file(source: DataFile) -> Dataset:
    """Load a local file, a folder or a Hub data set, with its options applied.

    Raises:
        InputError: it is empty or cannot be read; a bad line is named.
    """
    from datasets import load_dataset

    options = source.options
    path = Path(source.path)
    if source.is_local and path.is_file() and path.suffix not in LOADERS:
        if path.stat().st_size == 0:
            raise InputError(f"data set '{source.name}' is empty: {path}", hint="each line is one JSON object")
        try:
            rows = read_rows(path, options.get("types"))
            if "format" in options:
                rows = convert(rows, options["format"], lambda index: place_of(path, index))
            loaded = dataset_of_rows(rows, str(path))
        except InputError as cause:
            raise InputError(f"data set '{source.name}' cannot be read: {cause.message}", hint=cause.hint) from cause
        return _with_options(loaded, options, source.name)
    try:
        if path.is_file():
            loaded = load_dataset(LOADERS[path.suffix], data_files=str(path), split="train")
        else:
            given = {key: options[key] for key in ("name", "data_dir", "data_files") if key in options}
            loaded = load_dataset(source.path, split=options.get("split", "train"), **given)
    except Exception as cause:
        raise InputError(f"data set '{source.path}' cannot be loaded: {cause}") from cause
    if "format" in options:
        rows = convert([dict(row) for row in loaded], options["format"], lambda index: f"row {index + 1}")
        loaded = dataset_of_rows(rows, source.path)
    return _with_options(loaded, options, source.name)


def read_jsonl(file: Path) -> Dataset:
    """Return a stage's own data file as a data set, with the values that the stage wrote."""
    return dataset_of_rows(read_rows(file), str(file))


def _with_options(loaded: Any, options: Mapping[str, Any], name: str) -> Dataset:
    """`split`, `columns`, `rename`, `limit`, `system_prompt`, in this order."""
    if isinstance(loaded, Mapping):  # a DatasetDict
        split = options.get("split", "train")
        if split not in loaded:
            raise InputError(f"data set '{name}' has no split '{split}', it has {', '.join(loaded)}")
        loaded = loaded[split]
    # In this order: `columns` are named as they stand in the file, what is limited is what will be used, and a system
    # prompt is put before the columns that `rename` made.
    if options.get("columns"):
        loaded = loaded.select_columns([c for c in options["columns"] if c in loaded.column_names])
    if options.get("rename"):
        loaded = loaded.rename_columns({k: v for k, v in options["rename"].items() if k in loaded.column_names})
    if options.get("limit"):
        loaded = loaded.select(range(min(int(options["limit"]), len(loaded))))
    if options.get("system_prompt"):
        loaded = _with_system_prompt(loaded, options["system_prompt"], name)
    if len(loaded) == 0:
        raise InputError(f"data set '{name}' is empty")
    return loaded


def _with_system_prompt(dataset: Any, text: str, name: str) -> Any:
    """A system message before every prompt, which makes plain prompts conversational, and with them what follows."""
    names = dataset.column_names
    column = next((c for c in ("messages", "prompt") if c in names), None)
    if column is None:
        raise InputError(
            f"data set '{name}' has no 'prompt' or 'messages' that system_prompt could go before, it has "
            f"{', '.join(names)}",
            hint="rename: {old: prompt} on the data set, or remove its system_prompt",
        )
    system = {"role": "system", "content": text}
    changed = {column: [v if v is None else [system, *to_messages(v)] for v in dataset[column][:]]}
    for after in ("completion", "chosen", "rejected") if column == "prompt" else ():
        if after in names:
            said = dataset[after][:]
            changed[after] = [[{"role": "assistant", "content": v}] if isinstance(v, str) else v for v in said]
    for old, rows in changed.items():  # added first: a data set without columns has no rows
        dataset = dataset.add_column(f"new {old}", rows).remove_columns([old]).rename_column(f"new {old}", old)
    return dataset


def check_dataset(dataset: Any, alternatives: Any, source: Input) -> None:
    """Check that every row has the columns that a stage needs, in a form that its trainer can take.

    Args:
        dataset: a `datasets.Dataset`, or None for a field that is left out.
        alternatives: groups of columns, one of which must be there.
        source: what the recipe names, for messages.

    Raises:
        InputError: the data set, the row's place, the column, what was found, what was expected, and what mends it.
    """
    if dataset is None:
        return
    name = source.stage if isinstance(source, FromStage) else getattr(source, "name", str(source))
    names = dataset.column_names
    group = next((g for g in alternatives if set(g) <= set(names)), None)
    if group is None:
        wanted = " or ".join(" + ".join(f"'{c}'" for c in g) for g in alternatives)
        raise InputError(
            f"data set '{name}' has no {wanted}, it has {', '.join(names)}", hint="rename: {old: new} on the data set"
        )
    for column in group:
        if dataset.data.column(column).null_count:
            row = next(i for i, value in enumerate(dataset[column]) if value is None)
            raise InputError(f"data set '{name}': row {row + 1} has no '{column}'", hint="fill it or remove the row")
    # A prompt beside the columns that a stage asks for is read too: DPO takes it from there, and not from the pair.
    # Columns that nobody reads may hold anything.
    read = [column for column in names if column in {*group, "prompt"}]
    parts = dataset.select_columns(read).iter(ROWS_AT_ONCE)  # one by one takes four times as long
    rows = (dict(zip(read, row, strict=True)) for part in parts for row in zip(*map(part.get, read), strict=True))
    mistake = check_rows(rows, read)
    if mistake is not None:
        is_file = isinstance(source, DataFile) and source.is_local and "format" not in source.options
        place = place_of(Path(source.path), mistake.index) if is_file else f"row {mistake.index + 1}"  # type: ignore[union-attr]
        raise InputError(f"data set '{name}', {place}: {mistake}", hint=mistake.hint)
