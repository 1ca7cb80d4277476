"""The manifests from a model's folder back to its base, and what was measured of a model. No paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from posttrain_plugins.record.artifact import Artifact, read_manifest

__all__ = ["evaluations", "lineage", "made_in", "measurements"]


def made_in(path: Path) -> Path | None:
    """Return the folder of the stage that made a model: the nearest with a manifest, upwards."""
    return next((folder for folder in (path, *path.parents) if (folder / "manifest.json").is_file()), None)


def lineage(folder: Path) -> Iterator[Artifact]:
    """Yield a stage and those that made what it started from, the nearest first.

    Args:
        folder: of the stage. Another recipe of the same runs folder may have made what it started from.
    """
    now: Path | None = folder
    while now is not None:
        manifest = read_manifest(now)
        if manifest is None:
            return
        yield Artifact(now, manifest)
        start, key = manifest.get("start"), str(manifest.get("parts", {}).get("model", ""))
        now = next(iter(now.parents[1].glob(f"*/{start}-{key[:12]}")), None) if start and key else None


def measurements(made: Artifact) -> Iterator[Artifact]:
    """Yield each evaluation of the same run that stands by now and measured this very model."""
    stage, key = made.manifest["stage"], made.manifest["key"]
    for link in sorted((made.folder.parent / "latest").glob("*")):
        manifest = read_manifest(link)
        # not one of a model of this name that was trained again since
        if manifest and stage in manifest["details"].get("models", {}) and key in manifest.get("parts", {}).values():
            yield Artifact(link, manifest)


def evaluations(artifacts: Mapping[str, Artifact]) -> Iterator[Artifact]:
    """Yield the artifacts that measured models, and these very models: not one that a later run has made again."""
    for artifact in artifacts.values():
        if "models" in artifact.details and _is_current(artifact, artifacts):
            yield artifact


def _is_current(evaluation: Artifact, artifacts: Mapping[str, Artifact]) -> bool:
    # A later run with other settings leaves the evaluation as `latest` until it is measured again: its figures are of
    # the model of before, whose key stands among its parts.
    parts = evaluation.manifest.get("parts", {})
    measured = {name: parts.get(part.removesuffix(" name")) for part, name in parts.items() if part.endswith("] name")}
    return all(artifacts[name].manifest["key"] == key for name, key in measured.items() if name in artifacts)
