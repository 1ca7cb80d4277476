"""What `posttrain report --json` prints and the page holds: the same figures, from the same manifests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.lineage import evaluations
from posttrain_plugins.record.results import rows

__all__ = ["results_json"]


def results_json(name: str, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return a run's rows, and the figures of its stages, as JSON values.

    Args:
        name: of the recipe.
        artifacts: the finished stages.
    """
    stages: dict[str, Any] = {
        id: {"metrics": a.metrics, "folder": str(a.folder), "model_path": a.model_path and str(a.model_path)}
        for id, a in artifacts.items()
    }
    for artifact in evaluations(artifacts):
        stages[artifact.manifest["stage"]]["details"] = artifact.details
    return {"recipe": name, "stages": stages, "rows": [row.to_json() for row in rows(artifacts)]}
