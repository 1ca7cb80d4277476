"""JSON lines: written without NaN, read without what a kill has torn. No paper."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

__all__ = ["json_line", "kept_bytes", "read_lines"]


def json_line(row: Mapping[str, Any]) -> str:
    """Return one line of JSON, which has no NaN and no infinity: such a figure is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return list(map(plain, value))
        return None if isinstance(value, float) and not isfinite(value) else value

    return json.dumps(plain(row), ensure_ascii=False, allow_nan=False, default=str) + "\n"


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; a file that is not there has none.

    A line that is no object is passed over: of a run that was killed, or that writes just now, the last may be half.
    """
    for _, row in _rows(file):
        yield row


def kept_bytes(file: Path, after: int, field: str) -> int:
    """Return the length of the part of a file whose lines' `field` is at most `after`, without a torn line."""
    end = 0
    for position, row in _rows(file):
        if not isinstance(row.get(field), int) or row[field] > after:
            return end
        end = position
    return end


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield where a line ends, and its object."""
    try:
        stream = file.open("rb")
    except FileNotFoundError:
        return
    with stream:
        end = 0
        for line in stream:
            end += len(line)
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # of UTF-8, too
                row = None
            if isinstance(row, dict):
                yield end, row
