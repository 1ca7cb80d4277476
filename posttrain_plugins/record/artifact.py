"""A finished stage: its folder and its manifest. No paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError

__all__ = ["MANIFEST_FORMAT", "Artifact", "read_manifest"]

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2
"""Of `manifest.json`. 1 had no `folder`, no `base_revision` and keys without a `key format`; it is read as well."""


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


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return what a stage's manifest says, as it stands; None where no whole one does.

    Raises:
        InputError: a newer version wrote it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or "key" not in manifest:
        return None
    found = manifest.get("format", 1)
    if found not in range(1, MANIFEST_FORMAT + 1):
        by = f"posttrain-plugins {manifest.get('versions', {}).get('posttrain-plugins', 'of another version')} wrote it"
        message = f"{folder}/{MANIFEST} has format {found!r}, expected at most {MANIFEST_FORMAT}: {by}"
        raise InputError(message, hint="pip install --upgrade posttrain-plugins, or make it again by --force STAGE")
    return manifest
