"""Finds and reads the rollouts that RL stages save: `RUN:STAGE`, `RUN` or a file, also of a stage under way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.recipe.plan.store import Store

__all__ = ["Rollouts", "check_free", "find", "read", "read_one", "write"]

FILE = "rollouts.jsonl"


@dataclass(frozen=True)
class Rollouts:
    """Saved completions.

    Args:
        name: `RUN:STAGE`, or the file.
        file: the file that holds them.
        rows: `prompt`, `completion`, columns, and of an RL stage `rewards`, `weighted_reward` and `global_step`.
    """

    name: str
    file: Path
    rows: list[dict[str, Any]]

    @property
    def rewards(self) -> list[str]:
        """Return the names of the rewards that scored them."""
        return list(dict.fromkeys(name for row in self.rows for name in row.get("rewards") or {}))


def find(where: str, runs_dir: Path) -> dict[str, Path]:
    """Return `RUN:STAGE` -> its file, for every RL stage that is meant.

    Raises:
        InputError: there is none.
    """
    if Path(where).is_file():  # before it is taken for a run: a path may have a colon
        return {where: Path(where)}
    run, _, stage = where.partition(":")
    store = Store(runs_dir, run)
    # a stage under way lies in `.STAGE-KEY.partial`; where the same was finished before, that one counts
    begun = {folder.name[1:].rpartition("-")[0]: folder for folder in sorted(store.folder.glob(".*.partial"))}
    done = {stage: artifact.folder for stage, artifact in store.all_latest().items()}
    files = {f"{run}:{name}": folder / FILE for name, folder in {**begun, **done}.items()}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found:
        raise InputError(
            f"run '{run}' has saved no rollouts below {runs_dir}",
            hint="stages grpo, rloo and ppo save them; or name a JSONL file with prompt and completion",
        )
    if stage and where not in found:
        hint = suggest(where, found) or f"there are {', '.join(found)}"
        raise InputError(f"run '{run}' has no rollouts of a stage '{stage}'", hint=hint)
    return {where: found[where]} if stage else found


def read_one(where: str, runs_dir: Path) -> Rollouts:
    """Read the rollouts of one stage.

    Raises:
        InputError: there is none, or more than one.
    """
    found = find(where, runs_dir)
    if len(found) > 1:
        raise InputError(f"run '{where}' has rollouts of {len(found)} stages", hint=f"name one: {', '.join(found)}")
    return read(*next(iter(found.items())))


def read(name: str, file: Path) -> Rollouts:
    """Read a file of saved completions.

    Raises:
        InputError: a line that is not JSON, or a row without `prompt` or `completion`; names file and line.
    """
    lines = file.read_text(encoding="utf-8").split("\n")  # `splitlines` would cut at U+2028 within a completion
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as cause:
            if number == len(lines):  # torn: a stage under way is writing it
                continue
            raise InputError(f"{file}:{number}: not JSON: {cause}") from cause
        missing = [column for column in ("prompt", "completion") if column not in row]
        if missing:
            hint = "each line is one completion: prompt, completion, and what rewards need"
            raise InputError(f"{file}:{number}: no '{missing[0]}'", hint=hint)
        rows.append(row)
    if not rows:  # a stage that has just begun, or a file of blank lines
        raise InputError(f"{file} has no completions", hint="a stage writes them from its first step on")
    return Rollouts(name, file, rows)


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines.

    Raises:
        InputError: the file is there already.
    """
    check_free(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def check_free(file: Path) -> None:
    """Check that a file is not there, before the work whose result it is to hold.

    Raises:
        InputError: it is.
    """
    if file.exists():
        raise InputError(f"{file} is there already", hint="name another, or remove it")
