"""`figures.jsonl`: the figures of a training, a line each optimizer step, on disk when the step is done. No paper.

    {"step": 12, "total": 60, "seconds": 34.2, "at": 1764424392.1, "figures": {"loss": 0.41, "reward": 0.5}}

`figures` has the trainer's own names. What it tells later of a step (an evaluation, the summary of the end) is a line
more with that step; `read_figures` joins them. `seconds` are of the training up to here, what a kill has cost left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.record.lines import json_line, kept_bytes, read_lines

__all__ = ["FIGURES", "FiguresFile", "StepFigures", "read_figures"]

FIGURES = "figures.jsonl"
OLD = "log.jsonl"
"""How earlier versions called it, and wrote it when the training had ended; other stages log requests there."""
NO_FIGURES = ("step", "epoch", "total_flos")


@dataclass(frozen=True)
class StepFigures:
    """What one optimizer step came to.

    Args:
        step: its number, from 1.
        total: how many there are; None where an earlier version wrote it.
        seconds: of training up to its end; None there too.
        at: when that was, in seconds since 1970; None there too.
        figures: name -> value; NaN for one that was no finite number.
    """

    step: int
    total: int | None
    seconds: float | None
    at: float | None
    figures: Mapping[str, float]


class FiguresFile:
    """Writes `figures.jsonl`. A disk that refuses is told of once, and the training goes on.

    Args:
        folder: of the stage.
        step: that the training goes on from; what was written of later ones is dropped, and so is a torn line.
        note: is told what could not be written.
    """

    def __init__(self, folder: Path, step: int, note: Callable[[str], None]) -> None:
        self.path = folder / FIGURES
        self.note = note
        self.is_given_up = False
        if self.path.exists():
            self._act("r+b", lambda stream: stream.truncate(kept_bytes(self.path, step, "step")))

    def write(self, step: int, total: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Append a line; it has left this process when the call returns."""
        row = {"step": step, "total": total, "seconds": round(seconds, 3), "at": round(time.time(), 3)}
        line = json_line({**row, "figures": figures}).encode("utf-8", errors="replace")
        self._act("ab", lambda stream: stream.write(line))

    def sync(self) -> None:
        """Let the disk have what was written, so that no checkpoint is newer than its figures after a power cut."""
        self._act("ab", lambda stream: os.fsync(stream.fileno()))

    def _act(self, mode: str, act: Callable[[Any], Any]) -> None:
        if self.is_given_up:
            return
        try:
            # opened for each line: a trainer has no end at which it is certain to close a file
            with self.path.open(mode, buffering=0) as stream:
                act(stream)
        except OSError as cause:
            self.is_given_up = True
            self.note(f"{self.path.name} is not written any further, the training goes on: {cause.strerror or cause}")


def read_figures(folder: Path) -> Iterator[StepFigures]:
    """Yield the figures of each step of a stage, also while it trains; what earlier versions wrote is read as well.

    Args:
        folder: of the stage, finished or not.
    """
    rows = read_lines(folder / FIGURES) if (folder / FIGURES).is_file() else _old_rows(folder / OLD)
    now: dict[str, Any] | None = None
    for row in rows:
        if not isinstance(row.get("step"), int) or not isinstance(row.get("figures"), dict):
            continue
        if now is not None and row["step"] == now["step"]:
            now = {**now, "figures": {**now["figures"], **row["figures"]}}
            continue
        if now is not None:
            yield _step_figures(now)
        now = row
    if now is not None:
        yield _step_figures(now)


def _step_figures(row: Mapping[str, Any]) -> StepFigures:
    figures = {name: float("nan") if value is None else float(value) for name, value in row["figures"].items()}
    return StepFigures(row["step"], row.get("total"), row.get("seconds"), row.get("at"), figures)


def _old_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a trainer's log history in today's form; none of a log of requests, whose rows have no step."""
    for row in read_lines(file):
        if isinstance(row.get("step"), int):
            kept = {name: value for name, value in row.items() if name not in NO_FIGURES}
            yield {"step": row["step"], "figures": {n: v for n, v in kept.items() if isinstance(v, int | float | None)}}
