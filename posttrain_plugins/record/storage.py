"""What a runs folder holds: every stage's folder with its size, who needs it, whether it is as it was made. No paper.

What is needed: the latest of each stage of each run, what a run at work has planned, and all that these were made from
or whose weights they stand on, in whatever recipe's folder it lies.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.record.artifact import read_manifest
from posttrain_plugins.record.events import EVENTS, is_alive
from posttrain_plugins.record.lines import read_lines

__all__ = ["FILES", "SCRATCH", "Stored", "changes_of", "hashes_of", "is_below", "remove", "stored"]

FILES = "files"
"""The manifest's entry with the size and hash of each file that a stage made."""
SCRATCH = "scratch"
"""Its entry with the names of what was no part of the result, and is deleted once that stands."""
REWRITTEN = ("config.json", "manifest.json", "config.new", "manifest.new")
"""How names of files end that publishing writes, and what they are called before they are whole."""

Use: TypeAlias = Literal["latest", "needed", "unused", "begun", "left over"]


@dataclass(frozen=True)
class Stored:
    """One folder of a run.

    Args:
        run: the recipe's name.
        folder: where it is.
        stage: its id.
        key: content key, its first twelve digits where no manifest says more.
        use: `latest` of its stage; `needed` by others; `unused`; `begun` (checkpoints or answers, from which the next
            run goes on); or `left over`, of a kill.
        size: bytes on this disk; a file that several names share counts once.
        finished: when it was published, ISO 8601; empty where it was not.
        needed_by: what needs it, `run/stage`.
        manifest: of a finished stage.
    """

    run: str
    folder: Path
    stage: str
    key: str
    use: Use
    size: int
    finished: str = ""
    needed_by: tuple[str, ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "stage": self.stage,
            "key": self.key,
            "folder": str(self.folder),
            "use": self.use,
            "bytes": self.size,
            "finished": self.finished or None,
            "needed_by": list(self.needed_by),
        }


def stored(root: Path) -> list[Stored]:
    """Return all that stands in a runs folder, run by run, the newest of each stage first.

    Args:
        root: the runs folder.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"no runs folder {root}", hint="posttrain run RECIPE makes one, or name it: --runs-dir DIR")
    found = [one for run in sorted(filter(_is_run, root.iterdir())) for one in _of_run(run)]
    finished = {one.folder.resolve(): one for one in found if one.manifest}
    needed = _needed(finished, _planned(root))
    marked = [
        replace(one, use="needed", needed_by=tuple(sorted(needed[one.folder.resolve()])))
        if one.use == "unused" and one.folder.resolve() in needed
        else one
        for one in found
    ]
    return sorted(marked, key=lambda one: (one.run, one.stage, one.use != "latest", one.finished), reverse=False)


def remove(path: Path) -> None:
    """Delete a file or a folder that may be gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_below(name: Path, folders: Iterable[str]) -> bool:
    """Tell whether a file is one of these or lies below one, all relative to one folder."""
    return any(name.is_relative_to(one) for one in folders)


def hashes_of(folder: Path, scratch: Collection[str] = ()) -> dict[str, list[Any]]:
    """Return size and sha256 of each file of a stage by its name there, for its manifest.

    Configs are left out, which publishing and moving rewrite: they hold paths. So is what they are written into before
    they get their names, which a kill while publishing leaves.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    names = {file.relative_to(folder): file for file in files if not file.name.endswith(REWRITTEN)}
    return {
        name.as_posix(): [file.stat().st_size, _sha256(file)]
        for name, file in names.items()
        if not is_below(name, ("checkpoints", *scratch))  # the former by the recipe's wish, deleted as they grow old
    }


def changes_of(folder: Path, manifest: Mapping[str, Any], below: str = "") -> Iterator[str]:
    """Yield what is not as the stage made it: a file that is gone, has another size, or other bytes.

    Of a manifest of an earlier version, which has no hashes, nothing can be told.

    Args:
        folder: of the stage.
        manifest: its own.
        below: look at this file or folder of it alone; at all by default.
    """
    for name, (size, expected) in manifest.get(FILES, {}).items():
        if below and name != below and not name.startswith(f"{below}/"):
            continue
        file = folder / name
        if not file.is_file():
            yield f"{name} is gone"
        elif file.stat().st_size != size:
            yield f"{name} has {file.stat().st_size} bytes, expected {size}"
        elif (found := _sha256(file)) != expected:
            yield f"{name} has other bytes: sha256 {found[:12]}, expected {expected[:12]}"


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")


def _of_run(run: Path) -> Iterator[Stored]:
    latest = {link.resolve() for link in (run / "latest").glob("*")}
    for folder in sorted(run.iterdir()):
        if not folder.is_dir() or folder.is_symlink() or folder.name == "latest":
            continue
        manifest = read_manifest(folder) if not folder.name.startswith(".") else None
        if manifest is not None:
            use: Use = "latest" if folder.resolve() in latest else "unused"
            yield Stored(
                run=run.name,
                folder=folder,
                stage=str(manifest.get("stage") or folder.name.rpartition("-")[0]),
                key=str(manifest["key"]),
                use=use,
                size=_size(folder),
                finished=str(manifest.get("finished", "")),
                manifest=manifest,
            )
        elif folder.name.startswith("."):
            bare = folder.name.removeprefix(".").removesuffix(".partial").removesuffix(".old")
            stage, _, key = bare.rpartition("-")
            is_begun = folder.name.endswith(".partial") and any(folder.iterdir())
            yield Stored(run.name, folder, stage, key, "begun" if is_begun else "left over", _size(folder))


def _planned(root: Path) -> dict[str, str]:
    """Return the keys of what runs at work have planned, by key: `run/stage`."""
    found: dict[str, str] = {}
    for file in root.glob(f"*/{EVENTS}"):
        events = list(read_lines(file))
        is_over = any(event.get("event") == "ended" for event in events)
        if events and not is_over and is_alive(events[0]):
            found |= {stage["key"]: f"{file.parent.name}/{stage['id']}" for stage in events[0].get("stages", ())}
    return found


def _needed(finished: Mapping[Path, Stored], planned: Mapping[str, str]) -> dict[Path, set[str]]:
    """Return which folders are needed, each by what: from what is kept, back to all that it was made from."""
    by_key = {one.key: folder for folder, one in finished.items()}
    needed: dict[Path, set[str]] = {by_key[key]: {who} for key, who in planned.items() if key in by_key}
    waiting = [*(folder for folder, one in finished.items() if one.use == "latest"), *needed]
    seen = set(waiting)
    while waiting:
        folder = waiting.pop()
        who = f"{finished[folder].run}/{finished[folder].stage}"
        for other in _made_from(folder, finished, by_key):
            needed.setdefault(other, set()).add(who)
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return needed


def _made_from(folder: Path, finished: Mapping[Path, Stored], by_key: Mapping[str, Path]) -> Iterator[Path]:
    """Yield the stages whose keys are among a stage's parts, and those in whose folders its base lies."""
    own = finished[folder]
    for value in own.manifest.get("parts", {}).values():
        if isinstance(value, str) and value in by_key and by_key[value] != folder:
            yield by_key[value]
    for base in _bases(folder):
        holder = next((parent for parent in base.parents if parent in finished), None)
        if holder is not None and holder != folder:
            yield holder


def _bases(folder: Path) -> Iterable[Path]:
    """Return the folders that the adapters of a stage name as their base."""
    for file in folder.rglob("adapter_config.json"):
        try:
            base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            continue
        if base and Path(base).is_absolute():
            yield Path(base).resolve() / "x"  # so that the folder itself is among its parents


def _size(folder: Path) -> int:
    seen: set[tuple[int, int]] = set()
    total = 0
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            status = file.stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    return total


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
