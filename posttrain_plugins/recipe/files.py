"""What a data file or a model folder tells at a glance, without loading it and without anything heavy."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["columns", "exists", "model_problem", "renamed"]

SUFFIXES = frozenset({".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow"})
MAX_JSON_BYTES = 1_000_000
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


def exists(path: Path) -> bool:
    """Return whether a file or folder is there; a name that no file can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def columns(file: Path, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The columns of a JSONL, JSON, CSV or Parquet file after `rename` and `columns`; None where it cannot be told."""
    try:
        return renamed(_raw_columns(file), options)
    except (OSError, ValueError, UnicodeDecodeError):
        return None


def renamed(names: tuple[str, ...] | None, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Column names after the options `columns` (kept ones) and `rename` (old -> new)."""
    if names is None:
        return None
    kept = options.get("columns") or names
    rename = options.get("rename") or {}
    return tuple(rename.get(name, name) for name in names if name in kept)


def model_problem(folder: Path) -> str | None:
    """What keeps a folder from being a model, or None."""
    if not folder.is_dir():
        return f"no model folder {folder}"
    if (folder / "adapter_config.json").is_file():
        if not any(folder.glob("adapter_model*")):
            return f"adapter folder {folder} has no adapter_model.safetensors"
        return None if _names_base(folder) else f"adapter_config.json of {folder} has no base_model_name_or_path"
    if not (folder / "config.json").is_file():
        return f"model folder {folder} has no config.json"
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return f"model folder {folder} has no weights (*.safetensors)"
    return None


def _names_base(adapter: Path) -> bool:
    """PEFT writes null where the base was made in memory."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("base_model_name_or_path"))


def _raw_columns(file: Path) -> tuple[str, ...] | None:
    if file.suffix == ".jsonl":
        return _first_record(file)
    if file.suffix in (".csv", ".tsv"):
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return tuple(next(csv.reader(lines, delimiter="\t" if file.suffix == ".tsv" else ","), ()))
    if file.suffix == ".parquet":
        import pyarrow.parquet  # reads the footer only

        return tuple(pyarrow.parquet.read_schema(file).names)
    if file.suffix == ".json" and file.stat().st_size <= MAX_JSON_BYTES:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return tuple(rows[0]) if isinstance(rows, list) and rows and isinstance(rows[0], dict) else None
    return None


def _first_record(file: Path) -> tuple[str, ...] | None:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                record = json.loads(line)
                return tuple(record) if isinstance(record, dict) else None
    return ()
