"""Where stages write: `runs/<recipe>/<stage>-<key12>/`, published by one rename, with `manifest.json` written last.

A stage works in `.<stage>-<key12>.partial`, locked while in use. What bears the final name is complete, always.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe.plan.lock import Lock, hold
from posttrain_plugins.record.artifact import MANIFEST_FORMAT, Artifact, read_manifest
from posttrain_plugins.record.storage import FILES, SCRATCH, hashes_of, is_below, remove
from posttrain_plugins.types import EXPORT_MARKER

__all__ = ["Store", "read_artifact"]

FOLDER = "folder"
"""The manifest's entry that says where the artifact was published, so that one that was moved is known."""


class Store:
    """The artifacts of one recipe.

    Args:
        root: the runs folder.
        recipe: the recipe's name.
    """

    def __init__(self, root: Path, recipe: str) -> None:
        # The whole runs folder, not the recipe's part alone: a stage of another recipe that has this key is this stage.
        self.root = root
        self.folder = root / recipe
        self.holds: dict[Path, Lock] = {}  # partial folder -> its lock, while this process has it

    def prepare(self) -> None:
        """Make the folder, or say why it cannot be made.

        Raises:
            InputError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Asking for permission is not enough: root may write anywhere, and a full or read-only disk says yes.
            probe = self.folder / f".probe-{os.getpid()}"
            try:
                probe.write_bytes(bytes(4096))
            finally:
                probe.unlink(missing_ok=True)
        except OSError as cause:
            raise InputError(
                f"runs folder {self.folder} cannot be written: {cause.strerror}", hint="choose another: --runs-dir DIR"
            ) from cause

    def path(self, stage: str, key: str) -> Path:
        """Return the folder that a stage is published in."""
        return self.folder / f"{stage}-{key[:12]}"

    def partial(self, stage: str, key: str) -> Path:
        """Return the folder that a stage works in; its name begins with a dot, so no glob for results finds it."""
        return self.folder / f".{stage}-{key[:12]}.partial"

    def questions(self, stage: str, key: str) -> Path:
        """Return the folder in which a stage that waits for people keeps its questions.

        Args:
            stage: its id.
            key: of all but the decisions.
        """
        return self.folder / "questions" / f"{stage}-{key[:12]}"

    def get(self, stage: str, key: str) -> Artifact | None:
        """Return the finished artifact of that key, or None; another recipe's, or another stage's, serves as well.

        Raises:
            InputError: a newer version wrote it.
        """
        own = self.path(stage, key)
        elsewhere = sorted(self.root.glob(f"*/[!.]*-{key[:12]}")) if self.root.is_dir() else []
        for folder in (own, *elsewhere):
            artifact = read_artifact(folder)
            if artifact is None or artifact.manifest["key"] != key:  # the name has twelve digits of the key only
                continue
            path = artifact.model_path
            if path is None or path.is_relative_to(artifact.folder):
                return artifact
            # An export stands outside the store, where it may have been deleted, or overwritten by another stage since.
            with contextlib.suppress(OSError, ValueError):
                marker = json.loads((path / EXPORT_MARKER).read_text(encoding="utf-8"))
                if marker["made_by"] == f"{artifact.folder.parent.name}/{artifact.folder.name}":
                    return artifact
        return None

    def is_broken(self, stage: str, key: str) -> bool:
        """Return whether a folder bears the name of a result, and has no manifest that says what it is."""
        return self.path(stage, key).is_dir() and read_manifest(self.path(stage, key)) is None

    def latest(self, stage: str) -> Artifact | None:
        """Return the artifact that the stage made last, whatever its key."""
        return read_artifact(self.folder / "latest" / stage)

    def all_latest(self) -> dict[str, Artifact]:
        """Return every stage's latest artifact, in the order in which they were made."""
        found = {link.name: read_artifact(link) for link in (self.folder / "latest").glob("*")}
        done = {stage: artifact for stage, artifact in found.items() if artifact is not None}
        return dict(sorted(done.items(), key=lambda item: str(item[1].manifest["finished"])))

    def publish(self, stage: str, key: str, manifest: Mapping[str, Any], scratch: Collection[str] = ()) -> Artifact:
        """Write the manifest last and rename; from here on the stage is done.

        Args:
            stage: its id.
            key: its key.
            manifest: what is known of the result.
            scratch: names in the stage's folder that are no part of it. They go when the stage is done and not before:
                what is stopped or refused until then goes on from them.
        """
        partial, final = self.partial(stage, key), self.path(stage, key)
        self.check_held(stage, key)

        def published(text: str) -> str:  # an adapter's config names its base, which may be a folder of this stage
            return text.replace(str(partial), str(final))

        manifest = {"format": MANIFEST_FORMAT, **_replaced(manifest, published), FOLDER: str(final.resolve())}
        # of what stands there now, so that a disk that fails later is found out
        manifest[FILES] = hashes_of(partial, scratch)
        manifest[SCRATCH] = list(scratch)
        _write(partial, manifest, published, scratch)
        # A folder cannot be renamed onto one that holds files. The old one steps aside first, so that what bears the
        # final name is whole at any moment; a crash between the two renames leaves the stage undone, never torn.
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        made = Artifact(final, manifest)
        self.clear(made)
        self.point(stage, final)
        return made

    def clear(self, made: Artifact) -> None:
        """Delete what is no part of a result and may have outlived a kill; nothing outside, whatever a manifest has."""
        root = made.folder.resolve()
        for name in made.manifest.get(SCRATCH, ()):
            path = root / name
            if ".." not in path.parts and root in (path.parent.resolve() / path.name).parents:
                remove(path)

    def point(self, stage: str, folder: Path) -> None:
        """Let `latest/<stage>` name this artifact."""
        # Stages are found by their key; people, `report` and `RUN:STAGE` look for the newest by the name.
        link = self.folder / "latest" / stage
        target = os.path.relpath(folder, link.parent)  # relative, so that a runs folder can be moved
        if link.is_symlink() and str(link.readlink()) == target:
            return
        link.parent.mkdir(exist_ok=True)
        scratch = link.with_name(f".{stage}.{os.getpid()}")  # a symlink cannot be changed, but replaced in one step
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(target)
        scratch.replace(link)

    def remove(self, stage: str, key: str) -> None:
        """Delete a stage's result and what was begun of it, for one that is forced.

        Raises:
            StageFailed: another process is at it; nothing was taken away.
        """
        with self.locked(stage, key) as partial:
            final = self.path(stage, key)
            old = final.with_name(f".{final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                final.rename(old)  # at once undone: deleting takes a while, and half a result must not bear the name
                shutil.rmtree(old)
            shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, stage: str, key: str, note: Callable[[str], None] = lambda message: None) -> Iterator[Path]:
        """Make the partial folder if needed, and hold it for this process alone.

        Args:
            stage: its id.
            key: its key.
            note: is told of an owner on another machine that is watched or taken over from.

        Raises:
            StageFailed: another process is at it.
        """
        # Beside the folder that it guards, not in it: that is renamed when published, and the lock has to outlive it.
        with hold(self.folder, f"{stage}-{key[:12]}", stage, note) as lock:
            partial = self.partial(stage, key)
            partial.mkdir(exist_ok=True)
            self.holds[partial] = lock
            try:
                yield partial
            finally:
                del self.holds[partial]

    def check_held(self, stage: str, key: str, every_s: float = 0.0) -> None:
        """Do nothing while this process holds the stage.

        Args:
            stage: its id.
            key: its key.
            every_s: look only if the last look is so old.

        Raises:
            StageFailed: another machine took it over meanwhile.
        """
        if (lock := self.holds.get(self.partial(stage, key))) is not None:
            lock.check(every_s)


def read_artifact(folder: Path) -> Artifact | None:
    """Return the finished stage in a folder, None where no whole manifest stands.

    One that was moved or copied since it was published is given the paths of the place where it stands: an adapter
    names its base by an absolute path, since plain `PeftModel.from_pretrained` would look for a relative one from the
    working directory. What stood in the artifact, beside it or below the same runs folder is taken from there if it is
    there, also where the old place still stands: a copy must outlive what it was copied from.

    Raises:
        InputError: a newer version wrote it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    folder = folder.resolve()
    old = manifest.get(FOLDER)
    base = Path(manifest.get("handoff", {}).get("base") or "")
    if old is None and base.is_absolute() and len(base.parts) > 4 and not base.exists():
        # Format 1 did not say where it was published. The base did: ROOT/RECIPE/STAGE-KEY/model, if a stage made it.
        old = str(base.parents[2] / folder.parent.name / folder.name)
    if old in (None, str(folder)):
        return Artifact(folder, manifest)
    places = list(zip((Path(old), *Path(old).parents[:2]), (folder, *folder.parents[:2]), strict=False))

    def here(text: str) -> str:
        for before, now in places:
            if text == str(before) or text.startswith(f"{before}{os.sep}"):
                candidate = now / os.path.relpath(text, before)
                if candidate.exists():
                    return str(candidate)
        return text

    moved = {**_replaced(manifest, here), FOLDER: str(folder)}
    with contextlib.suppress(OSError):  # on a read-only disk, what is returned is right for this process at least
        _write(folder, moved, here)
    return Artifact(folder, moved)


def _replaced(value: Any, new: Callable[[str], str]) -> Any:
    """Return a JSON value with every text in it replaced."""
    if isinstance(value, dict):
        return {k: _replaced(v, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, new) for v in value]
    return new(value) if isinstance(value, str) else value


def _write(folder: Path, manifest: Mapping[str, Any], new: Callable[[str], str], scratch: Collection[str] = ()) -> None:
    """Replace the paths in all configs of an artifact, then write its manifest: what has one is whole."""
    texts = {}
    for file in folder.glob("**/*config.json"):
        if is_below(file.relative_to(folder), scratch):  # a checkpoint is known by its bytes
            continue
        values = json.loads(file.read_text(encoding="utf-8"))
        if (replaced := _replaced(values, new)) != values:
            texts[file] = json.dumps(replaced, indent=2)
    texts[folder / "manifest.json"] = json.dumps(manifest, indent=1, default=str)
    for file, text in texts.items():
        with file.with_suffix(".new").open("w", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())  # else a power cut may keep the rename and lose the content
        file.with_suffix(".new").replace(file)
