"""Where stages write: `runs/<recipe>/<stage>-<key12>/`, published by one rename, with `manifest.json` written last.

A stage works in `.<stage>-<key12>.partial`, locked while in use. What bears the final name is complete, always.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.types import EXPORT_MARKER

__all__ = ["Artifact", "Store", "settle_model"]

FOLDER = "folder"
"""The manifest's entry that says where the artifact was published, so that one that was moved is known."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """The stage's figures."""
        return dict(self.manifest["metrics"])

    @property
    def details(self) -> dict[str, Any]:
        """Further values of the stage, such as an evaluation's whole summary."""
        return dict(self.manifest["details"])

    @property
    def model_path(self) -> Path | None:
        """The model's folder, for `from_pretrained`."""
        return self._path("model_path")

    @property
    def data_path(self) -> Path | None:
        """The data set's JSONL file."""
        return self._path("data_path")

    def _path(self, name: str) -> Path | None:
        value = self.manifest.get(name)
        return self.folder / value if value else None


class Store:
    """The artifacts of one recipe.

    Args:
        root: the runs folder.
        recipe: the recipe's name.
    """

    def __init__(self, root: Path, recipe: str) -> None:
        self.root = root
        self.folder = root / recipe

    def prepare(self) -> None:
        """Makes the folder, or says why it cannot be.

        Raises:
            InputError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as cause:
            raise InputError(
                f"runs folder {self.folder} cannot be written: {cause.strerror}", hint="choose another: --runs-dir DIR"
            ) from cause

    def path(self, stage: str, key: str) -> Path:
        return self.folder / f"{stage}-{key[:12]}"

    def partial(self, stage: str, key: str) -> Path:
        return self.folder / f".{stage}-{key[:12]}.partial"

    def get(self, stage: str, key: str) -> Artifact | None:
        """The finished artifact of that key, or None; another recipe's, or another stage's, serves as well."""
        own = self.path(stage, key)
        elsewhere = sorted(self.root.glob(f"*/[!.]*-{key[:12]}")) if self.root.is_dir() else []
        for folder in (own, *elsewhere):
            artifact = _read(folder)
            if artifact is not None and artifact.manifest["key"] == key and _stands(artifact):
                return artifact
        return None

    def latest(self, stage: str) -> Artifact | None:
        """The artifact that the stage made last, whatever its key."""
        return _read(self.folder / "latest" / stage)

    def all_latest(self) -> dict[str, Artifact]:
        """Every stage's latest artifact, in the order in which they were made."""
        found = {link.name: _read(link) for link in (self.folder / "latest").glob("*")}
        done = {stage: artifact for stage, artifact in found.items() if artifact is not None}
        return dict(sorted(done.items(), key=lambda item: str(item[1].manifest["finished"])))

    def publish(self, stage: str, key: str, manifest: Mapping[str, Any]) -> Artifact:
        """Writes the manifest last and renames; from here on the stage is done."""
        partial, final = self.partial(stage, key), self.path(stage, key)
        _relocate(partial, final)
        manifest = {
            **_replaced(manifest, lambda text: text.replace(str(partial), str(final))),
            FOLDER: str(final.resolve()),
        }
        _write_synced(partial / "manifest.json", json.dumps(manifest, indent=1, default=str) + "\n")
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)  # what bears the final name is whole at any moment
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        self.point(stage, final)
        return Artifact(final, manifest)

    def point(self, stage: str, folder: Path) -> None:
        """Lets `latest/<stage>` name this artifact."""
        link = self.folder / "latest" / stage
        target = os.path.relpath(folder, link.parent)
        if link.is_symlink() and str(link.readlink()) == target:
            return
        link.parent.mkdir(exist_ok=True)
        scratch = link.with_name(f".{stage}.{os.getpid()}")
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(target)
        scratch.replace(link)

    def remove(self, stage: str, key: str) -> None:
        """Takes a stage's result and what was begun of it away, for one that is forced.

        Raises:
            StageFailed: another process is at it; nothing was taken away.
        """
        with self.locked(stage, key) as partial:
            final = self.path(stage, key)
            old = final.with_name(f".{final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                final.rename(old)
                shutil.rmtree(old)
            shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, stage: str, key: str) -> Iterator[Path]:
        """The partial folder, made if needed and held by this process alone.

        Raises:
            StageFailed: another process is at it.
        """
        lock = self.folder / f".{stage}-{key[:12]}.lock"
        with lock.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as cause:
                raise StageFailed(
                    f"stage '{stage}' is being made by another process", hint="wait for it, then run again"
                ) from cause
            partial = self.partial(stage, key)
            partial.mkdir(exist_ok=True)
            yield partial


def settle_model(path: Path) -> None:
    """Give a model that is named by its folder, in an artifact that was moved, the paths of where it stands."""
    for folder in (path, path.parent):
        if (folder / "manifest.json").is_file():
            _read(folder)


def _read(folder: Path) -> Artifact | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    folder = folder.resolve()
    if manifest.get(FOLDER) not in (None, str(folder)):
        manifest = _settle(folder, manifest)
    return Artifact(folder, manifest)


def _settle(folder: Path, manifest: Mapping[str, Any]) -> Any:
    """Give an artifact that was moved or copied the paths of the place where it stands.

    An adapter names its base by an absolute path, since plain `PeftModel.from_pretrained` would look for a relative one
    from the working directory. What stood in the artifact, beside it or below the same runs folder is taken from there
    if it is there, also where the old place still stands: a copy must outlive what it was copied from.
    """
    old = Path(manifest[FOLDER])
    places = [(old, folder), (old.parent, folder.parent), (old.parent.parent, folder.parent.parent)]

    def here(text: str) -> str:
        for before, now in places:
            if text == str(before) or text.startswith(f"{before}{os.sep}"):
                candidate = now / os.path.relpath(text, before)
                if candidate.exists():
                    return str(candidate)
        return text

    settled = {**_replaced(manifest, here), FOLDER: str(folder)}
    with contextlib.suppress(
        OSError
    ):  # on a disk that is read-only, what is recorded is right for this process at least
        for file in folder.glob("**/*config.json"):
            values = json.loads(file.read_text(encoding="utf-8"))
            if (new := _replaced(values, here)) != values:
                _write_synced(file.with_suffix(".new"), json.dumps(new, indent=2) + "\n")
                file.with_suffix(".new").replace(file)
        _write_synced(folder / "manifest.new", json.dumps(settled, indent=1, default=str) + "\n")
        (folder / "manifest.new").replace(folder / "manifest.json")
    return settled


def _stands(artifact: Artifact) -> bool:
    """What a stage wrote outside the store may be gone, or be another's by now."""
    path = artifact.model_path
    if path is None or path.is_relative_to(artifact.folder):
        return True
    try:
        marker = json.loads((path / EXPORT_MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(marker["made_by"] == f"{artifact.folder.parent.name}/{artifact.folder.name}")


def _relocate(partial: Path, final: Path) -> None:
    """Configs that name the partial folder (an adapter's base) name the final one."""
    for file in partial.glob("**/*config.json"):
        values = json.loads(file.read_text(encoding="utf-8"))
        moved = _replaced(values, lambda text: text.replace(str(partial), str(final)))
        if moved != values:
            file.write_text(json.dumps(moved, indent=2) + "\n", encoding="utf-8")


def _replaced(value: Any, new: Callable[[str], str]) -> Any:
    """A JSON value with every text in it replaced."""
    if isinstance(value, dict):
        return {k: _replaced(v, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, new) for v in value]
    return new(value) if isinstance(value, str) else value


def _write_synced(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
