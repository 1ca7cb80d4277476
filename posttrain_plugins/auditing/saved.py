"""The rollouts that RL stages save, found by `RUN:STAGE`, `RUN` or a file: finished stages', and those under way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.recipe.plan.store import Store

__all__ = ["Rollouts", "check_free", "find", "one", "read", "write"]

FILE = "rollouts.jsonl"


@dataclass(frozen=True)
class Rollouts:
    """Saved completions.

    Args:
        name: `RUN:STAGE`, or the file.
        file: where they stand.
        rows: `prompt`, `completion`, columns, and of an RL stage `rewards`, `weighted_reward` and `global_step`.
    """

    name: str
    file: Path
    rows: list[dict[str, Any]]

    @property
    def rewards(self) -> list[str]:
        """The names of the rewards that scored them."""
        return list(dict.fromkeys(name for row in self.rows for name in row.get("rewards") or {}))


def find(where: str, runs_dir: Path) -> dict[str, Path]:
    """`RUN:STAGE` -> its file, for every RL stage that is meant.

    Raises:
        InputError: there is none.
    """
    if Path(where).is_file():
        return {where: Path(where)}
    run, _, stage = where.partition(":")
    found = _of_run(Store(runs_dir, run), run)
    if not found:
        raise InputError(
            f"run '{run}' has saved no rollouts below {runs_dir}",
            hint="stages grpo, rloo and ppo save them; or name a JSONL file with prompt and completion",
        )
    if stage and where not in found:
        hint = suggest(where, found) or f"there are {', '.join(found)}"
        raise InputError(f"run '{run}' has no rollouts of a stage '{stage}'", hint=hint)
    return {where: found[where]} if stage else found


def one(where: str, runs_dir: Path) -> Rollouts:
    """The rollouts of one stage.

    Raises:
        InputError: there is none, or more than one.
    """
    found = find(where, runs_dir)
    if len(found) > 1:
        raise InputError(f"run '{where}' has rollouts of {len(found)} stages", hint=f"name one: {', '.join(found)}")
    return read(*next(iter(found.items())))


def read(name: str, file: Path) -> Rollouts:
    """A file of saved completions; a torn last line, as a stage under way may have, is passed over.

    Raises:
        InputError: a line that is not JSON, or a row without `prompt` or `completion`; names file and line.
    """
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as cause:
            if number == len(lines):
                continue
            raise InputError(f"{file}:{number}: not JSON: {cause}") from cause
        missing = [column for column in ("prompt", "completion") if column not in row]
        if missing:
            hint = "each line is one completion: prompt, completion, and what rewards need"
            raise InputError(f"{file}:{number}: no '{missing[0]}'", hint=hint)
        rows.append(row)
    if not rows:
        raise InputError(f"{file} has no completions", hint="a stage writes them from its first step on")
    return Rollouts(name, file, rows)


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON lines.

    Raises:
        InputError: the file is there already.
    """
    check_free(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def check_free(file: Path) -> None:
    """Refuses a file that is there already.

    Raises:
        InputError: it is.
    """
    if file.exists():
        raise InputError(f"{file} is there already", hint="name another, or remove it")


def _of_run(store: Store, run: str) -> dict[str, Path]:
    """Finished stages first; one under way counts where it has not been finished before."""
    done = {f"{run}:{stage}": artifact.folder / FILE for stage, artifact in store.all_latest().items()}
    begun = {
        f"{run}:{folder.name[1:].rpartition('-')[0]}": folder / FILE
        for folder in sorted(store.folder.glob(".*.partial"))
    }
    return {name: file for name, file in {**begun, **done}.items() if file.is_file()}
