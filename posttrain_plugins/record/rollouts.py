"""The newest completions of a training, read from the end of `rollouts.jsonl`, which may have gigabytes. No paper."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.record.lines import read_lines

__all__ = ["Newest", "newest"]

BLOCK = 1 << 16
MOST_BYTES = 1 << 22  # from either end; a step of more than this shows its last part


@dataclass(frozen=True)
class Newest:
    """What was sampled last.

    Args:
        step: optimizer steps done when it was sampled.
        rows: as they are written.
        earlier: prompt, as JSON -> the first completion of it that was sampled, where that is near the beginning.
    """

    step: int
    rows: list[dict[str, Any]]
    earlier: dict[str, dict[str, Any]]

    def pairs(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield what was made of a prompt then and now, each prompt once, where it is not the same."""
        seen = set()
        for row in self.rows:
            prompt = _prompt(row)
            then = self.earlier.get(prompt)
            if then is not None and prompt not in seen and then.get("completion") != row.get("completion"):
                seen.add(prompt)
                yield then, row


def newest(file: Path) -> Newest | None:
    """Return what the last generation sampled, and what was made of the same prompts before; None where there is none.

    Args:
        file: `rollouts.jsonl`, also one that grows.
    """
    rows: list[dict[str, Any]] = []
    for row in _from_the_end(file):
        if rows and row.get("global_step") != rows[0].get("global_step"):
            break
        rows.append(row)
    if not rows or not isinstance(rows[0].get("global_step"), int):
        return None
    rows.reverse()
    step = rows[0]["global_step"]
    prompts = {_prompt(row) for row in rows}
    earlier: dict[str, dict[str, Any]] = {}
    read = 0
    for row in read_lines(file):
        read += len(str(row))  # about what it has on disk
        if row.get("global_step") == step or read > MOST_BYTES or len(earlier) == len(prompts):
            break
        if _prompt(row) in prompts:
            earlier.setdefault(_prompt(row), row)
    return Newest(step, rows, earlier)


def _prompt(row: dict[str, Any]) -> str:
    return json.dumps(row.get("prompt"), sort_keys=True)


def _from_the_end(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file's whole lines, the last first, of so many bytes at most."""
    try:
        stream = file.open("rb")
    except OSError:
        return
    with stream:
        place = stream.seek(0, os.SEEK_END)
        first = max(0, place - MOST_BYTES)
        rest = b""
        while place > first:
            size = min(BLOCK, place - first)
            place -= size
            stream.seek(place)
            lines = (stream.read(size) + rest).split(b"\n")
            rest = lines[0] if place else b""
            for line in reversed(lines[1:] if place else lines):
                try:
                    row = json.loads(line)
                except ValueError:  # empty, cut, or being written
                    continue
                if isinstance(row, dict):
                    yield row
