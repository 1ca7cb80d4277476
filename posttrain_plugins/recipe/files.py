"""What a data file or a model folder tells at a glance, without loading it and without anything heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.rows.formats import convert
from posttrain_plugins.rows.read import TEXT_SUFFIXES, Row, place_of, read_rows

__all__ = ["columns", "exists", "head", "model_problem", "renamed"]

SUFFIXES = frozenset({".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow"})
MAX_JSON_BYTES = 1_000_000
HEAD_ROWS = 50
"""So many rows are looked at by `validate`; the run looks at all."""
PICKLED = (
    "has its weights in pickle files alone; allow_pickle: true beside model_name_or_path, if you trust who made it"
)
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


def exists(path: Path) -> bool:
    """Return whether a file or folder is there; a name that no file can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def columns(file: Path, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the columns of a data file after `format`, `columns` and `rename`; None where it cannot be told.

    Raises:
        InputError: a row at its beginning cannot be read, or is not of the format.
    """
    if file.suffix == ".parquet":
        import pyarrow.parquet  # reads the footer only

        try:
            return renamed(tuple(pyarrow.parquet.read_schema(file).names), options)
        except (OSError, ValueError):
            return None
    rows = head(file, options)
    return None if rows is None else tuple(dict.fromkeys(name for row in rows for name in row))


def head(file: Path, options: Mapping[str, Any]) -> list[Row] | None:
    """Return the first rows of a text file in the columns of the recipe; None of other files and of large JSON lists.

    Raises:
        InputError: as `columns`.
    """
    # A JSON list cannot be read in part; JSONL and CSV can, however large they are.
    is_large = file.suffix == ".json" and file.stat().st_size > MAX_JSON_BYTES
    if file.suffix not in TEXT_SUFFIXES or is_large:
        return None
    rows = read_rows(file, options.get("types"), limit=HEAD_ROWS)
    if "format" in options:
        rows = convert(rows, options["format"], lambda index: place_of(file, index))
    kept, rename = options.get("columns"), options.get("rename") or {}
    return [{rename.get(k, k): v for k, v in row.items() if not kept or k in kept} for row in rows]


def renamed(names: tuple[str, ...] | None, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Column names after the options `columns` (kept ones) and `rename` (old -> new)."""
    if names is None:
        return None
    kept = options.get("columns") or names
    rename = options.get("rename") or {}
    return tuple(rename.get(name, name) for name in names if name in kept)


def model_problem(folder: Path, allow_pickle: bool = False) -> str | None:
    """Return what keeps a folder from being a model, or None.

    Args:
        folder: with a model or an adapter.
        allow_pickle: take weights of the old format too, which is read by `pickle`: who wrote it may run code here.
    """
    if not folder.is_dir():
        return f"no model folder {folder}"
    if (folder / "adapter_config.json").is_file():
        if not any(folder.glob("adapter_model*")):
            return f"adapter folder {folder} has no adapter_model.safetensors"
        if not (allow_pickle or any(folder.glob("adapter_model*.safetensors"))):
            return f"adapter folder {folder} {PICKLED}"
        return None if _names_base(folder) else f"adapter_config.json of {folder} has no base_model_name_or_path"
    if not (folder / "config.json").is_file():
        # what a run wrote for a stage is taken for its model by whoever completes the path in a shell
        of_stage = (folder / "manifest.json").is_file() and (folder / "model").is_dir()
        where = f": it is a stage's, and the model is in {folder / 'model'}" if of_stage else ""
        return f"model folder {folder} has no config.json{where}"
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return f"model folder {folder} has no weights (*.safetensors)"
    if not (allow_pickle or any(folder.glob("*.safetensors*"))):
        return f"model folder {folder} {PICKLED}"
    return None


def _names_base(adapter: Path) -> bool:
    """PEFT writes null where the base was made in memory."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("base_model_name_or_path"))
