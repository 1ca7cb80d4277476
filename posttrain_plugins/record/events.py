"""`run.jsonl`: what happened in a run, a line as it happens, begun anew by each run. No paper.

| event      | with                                                                                             |
|------------|--------------------------------------------------------------------------------------------------|
| `planned`  | `recipe`, `stages` in their order (`PlannedLine`), and who runs it: `pid`, `born`, `host`, `command` |
| `started`  | `stage`, `key`, `resumed_from`: a checkpoint's name or null                                       |
| `progress` | `stage`, `done`, `total`, `unit`, `figures`; at most one a second and stage                       |
| `note`     | `stage`, `message`                                                                                |
| `finished` | `stage`, `cached`, `folder`, from the file's own                                                  |
| `failed`   | `stage`, `message`, `hint`, `stopped`: was it the user's wish? `waits`: how far people are, or null |
| `ended`    | `state`: `done`, `failed`, `stopped` or `waiting` (for people); `message`, `hint`                 |

Each has `event` and `at`, in seconds since 1970.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from posttrain_plugins.record.lines import json_line

__all__ = ["EVENTS", "EventFile", "born", "is_alive"]

EVENTS = "run.jsonl"
PROGRESS_SECONDS = 1.0


class EventFile:
    """Writes `run.jsonl`. A disk that refuses is told of once, and the run goes on.

    Args:
        folder: of the recipe's runs; what an earlier run wrote there is replaced.
        recipe: its name.
        stages: of the plan: `id`, `use`, `makes`, `key`, `from`, `start`, `cached`, `wanted`, `reasons`, `folder` each.
        note: is told what could not be written.
    """

    def __init__(
        self, folder: Path, recipe: str, stages: Sequence[Mapping[str, Any]], note: Callable[[str], None]
    ) -> None:
        self.path = folder / EVENTS
        self.note = note
        self.stream: BinaryIO | None = None
        self.last: dict[str, float] = {}  # stage -> when its progress was written
        self.waiting: dict[str, dict[str, Any]] = {}  # stage -> its newest progress, not written yet
        who = {"pid": os.getpid(), "born": born(os.getpid()), "host": socket.gethostname(), "command": _command()}
        # written beside and renamed: a reader finds the run of before or this one, never a file without its head
        scratch = folder / f".{EVENTS}.{os.getpid()}"
        try:
            self.stream = scratch.open("wb", buffering=0)
            self.write("planned", recipe=recipe, stages=list(stages), **who)
            scratch.replace(self.path)
        except OSError as cause:
            self._give_up(cause)

    def write(self, event: str, **values: Any) -> None:
        """Append an event; one of a stage lets its last progress go before."""
        waiting = self.waiting.pop(str(values.get("stage")), None)
        if waiting is not None and event != "progress":
            self._append(waiting)
        self._append({"event": event, "at": round(time.time(), 3), **values})

    def progress(self, stage: str, **values: Any) -> None:
        """Append how far a stage is, where the last such line is a second old."""
        now = time.monotonic()
        if now - self.last.get(stage, -PROGRESS_SECONDS) >= PROGRESS_SECONDS:
            self.last[stage] = now
            self.write("progress", stage=stage, **values)
        else:
            self.waiting[stage] = {"event": "progress", "at": round(time.time(), 3), "stage": stage, **values}

    def close(self) -> None:
        """Write no more."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def _append(self, row: Mapping[str, Any]) -> None:
        if self.stream is None:
            return
        try:
            self.stream.write(json_line(row).encode("utf-8", errors="replace"))
        except OSError as cause:
            self._give_up(cause)

    def _give_up(self, cause: OSError) -> None:
        self.close()
        self.note(f"{self.path.name} is not written any further, the run goes on: {cause.strerror or cause}")


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def born(pid: int) -> int | None:
    """Return when a process of this machine began, in ticks since it was started; None where nobody knows."""
    try:
        # the name stands in parentheses and may hold any character
        return int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, ValueError, IndexError):
        return None


def is_alive(planned: Mapping[str, Any]) -> bool:
    """Tell whether the process that wrote a `planned` event still runs; of another machine nobody here can say, so yes.

    Its number alone says little: after a while another process has it.
    """
    if planned.get("host") != socket.gethostname():
        return True
    try:
        os.kill(planned["pid"], 0)
    except PermissionError:  # another user's
        pass
    except (KeyError, TypeError, OSError):
        return False
    began = born(planned["pid"])
    return began is None or planned.get("born") in (None, began)
