"""What a run tells the workers of a stage and what they tell it, as files of one folder; nothing is pickled.

| file              | by                | holds                                                                   |
|-------------------|-------------------|-------------------------------------------------------------------------|
| `recipe.yaml`     | the run           | the recipe as it was resolved                                           |
| `job.json`        | the run           | `Job`                                                                   |
| `stop`            | the run           | nothing: that it is there is the wish to stop                           |
| `over`            | the run           | nothing: that it is there says that other machines' workers have to end |
| `rank-R.json`     | each worker       | its process id and host, so that none is left behind                    |
| `rank-R.log`      | each worker       | what it and its libraries print                                         |
| `beat-R.json`     | each worker       | its step, and when it last got on (`hang.py`)                           |
| `stack-R.txt`     | a worker          | where its threads stand, when the run asks for it                       |
| `events.jsonl`    | the first worker  | progress and notes                                                      |
| `error-R.json`    | a worker          | what it raised                                                          |
| `result.json`     | the first worker  | the stage's result, once every process has it                           |
| `launcher.log`    | the launcher      | what it prints                                                          |
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins import errors
from posttrain_plugins.errors import PosttrainError, StageFailed
from posttrain_plugins.types import StageResult

__all__ = ["FOLDER", "Failure", "Job", "clear", "read_failures", "read_result", "write_failure", "write_result"]

FOLDER = "launch"
"""Below a stage's folder; it goes when the stage is published."""


@dataclass(frozen=True)
class Job:
    """A stage to be made.

    Args:
        stage: its id in the recipe.
        key: what its result is known by; a worker that comes to another refuses.
        parts: of the key, by which a worker says what differs.
        artifacts: stage before it -> folder.
        runs_dir: the runs folder.
        partial: the stage's own.
        checkpoint: to go on from.
        engine: that has to be in force.
        world_size: how many workers there have to be.
        path: the run's `sys.path`.
    """

    stage: str
    key: str
    parts: Mapping[str, str]
    artifacts: Mapping[str, str]
    runs_dir: str
    partial: str
    checkpoint: str | None
    engine: str
    world_size: int
    path: list[str]

    @property
    def folder(self) -> Path:
        return Path(self.partial) / FOLDER

    @property
    def file(self) -> Path:
        return self.folder / "job.json"

    @property
    def over(self) -> Path:
        return self.folder / "over"

    def write(self, recipe: str) -> None:
        """Write the job and its recipe into a folder without anything of an earlier one."""
        # an earlier try's result, or its error, would be taken for this one's
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        write_json(self.file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> Job:
        """Read what `write` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Failure:
    """What a worker raised.

    Args:
        rank: of the worker.
        kind: name of the exception's class.
        message: of it.
        hint: of it.
        at: when, in seconds since 1970.
    """

    rank: int
    kind: str
    message: str
    hint: str | None
    at: float

    def error(self) -> PosttrainError:
        """Return it as the exception that it was, or as a failed stage where it was none of ours."""
        # among our own classes alone: a file names it, and is to name no other class of Python's
        found = getattr(errors, self.kind, None)
        if isinstance(found, type) and issubclass(found, PosttrainError):
            try:
                return found(self.message, self.hint)
            except TypeError:  # one that is made of other things
                pass
        return StageFailed(self.message, self.hint)


def write_json(file: Path, value: Any) -> None:
    """Write a file by one rename: whoever finds it finds all of it."""
    # beside the file: a rename between two file systems is a copy, which can be found half done
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, default=str), encoding="utf-8")
    scratch.replace(file)


def clear(partial: Path) -> None:
    """Take away what passed between run and workers."""
    shutil.rmtree(partial / FOLDER, ignore_errors=True)


def write_presence(folder: Path, rank: int) -> None:
    """Say which process this worker is."""
    write_json(folder / f"rank-{rank}.json", {"pid": os.getpid(), "host": socket.gethostname()})


def write_failure(folder: Path, rank: int, error: BaseException) -> None:
    """Write what a worker raised."""
    # of others nobody knows what their message leaves to the name of their class
    kind, message, hint = type(error).__name__, f"{type(error).__name__}: {error}", None
    if isinstance(error, PosttrainError):
        message, hint = error.message, error.hint
    write_json(folder / f"error-{rank}.json", asdict(Failure(rank, kind, message, hint, time.time())))


def read_failures(folder: Path) -> list[Failure]:
    """Return what workers raised, the earliest first."""
    found = [Failure(**json.loads(file.read_text(encoding="utf-8"))) for file in folder.glob("error-*.json")]
    # the clocks of two machines differ: there the first of all is likely, and not certain
    return sorted(found, key=lambda failure: failure.at)


def write_result(folder: Path, result: StageResult) -> None:
    """Write what the stage came to; paths as they are."""
    write_json(folder / "result.json", asdict(result))


def read_result(folder: Path) -> StageResult | None:
    """Return what the stage came to; None where the workers have not come so far."""
    file = folder / "result.json"
    if not file.is_file():
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    # JSON knows no paths
    for name in ("model_path", "data_path"):
        values[name] = values[name] and Path(values[name])
    return StageResult(**values)
