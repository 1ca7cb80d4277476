"""The card of an exported model: how it was made and what was measured, from the manifests of the run. No paper."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.types import ModelArtifact

__all__ = ["model_card"]


def model_card(
    artifact: ModelArtifact,
    title: str,
    architecture: str,
    merging: Mapping[str, float],
    quantization: Mapping[str, Any],
) -> str:
    """Markdown with Hugging Face's front matter; nothing in it that no manifest says.

    Args:
        artifact: what was exported.
        title: the folder's name.
        architecture: the class that loads it.
        merging: what merging changed in the logits.
        quantization: TRL `ModelConfig` fields of the saved weights.
    """
    stages = list(_lineage(Path(artifact.path)))
    lines = ["---", "library_name: transformers", "tags:", "- posttrain-plugins", "---", "", f"# {title}", ""]
    lines += [f"`{architecture}`, exported from `{artifact.name}`{_of_recipe(artifact)}.", ""]
    if stages:
        lines += ["## Stages", "", "| stage | by | from | figures |", "| --- | --- | --- | --- |"]
        lines += [_row(manifest) for manifest in reversed(stages)]
        lines += ["", *_evaluation(Path(artifact.path), stages[0])]
        versions = ", ".join(f"{name} {version}" for name, version in stages[0].get("versions", {}).items())
        lines += ["## Versions", "", f"{versions}.", ""]
    if merging or quantization:
        lines += ["## Weights", ""]
        lines += [f"- {name.replace('_', ' ')} by merging: {value:.3g}" for name, value in merging.items()]
        lines += [f"- {name}: {value}" for name, value in quantization.items()] + [""]
    return "\n".join(lines)


def _artifact_folder(model: Path) -> Path | None:
    """The folder of the stage that made a model: the nearest above it with a manifest."""
    return next((folder for folder in (model, *model.parents) if (folder / "manifest.json").is_file()), None)


def _lineage(model: Path) -> Iterator[dict[str, Any]]:
    """The manifests of the stage that made a model, and of those that made what it started from."""
    folder = _artifact_folder(model)
    while folder is not None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        yield manifest
        start, key = manifest.get("start"), str(manifest.get("parts", {}).get("model", ""))
        folder = next(iter(folder.parents[1].glob(f"*/{start}-{key[:12]}")), None) if start and key else None


def _of_recipe(artifact: ModelArtifact) -> str:
    folder = _artifact_folder(Path(artifact.path))
    return f" of the recipe `{folder.parent.name}`" if folder else ""


def _row(manifest: Mapping[str, Any]) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in manifest["metrics"].items())
    return f"| {manifest['stage']} | {manifest['use']} | {manifest.get('start') or ''} | {figures} |"


def _evaluation(model: Path, made: Mapping[str, Any]) -> list[str]:
    """What evaluations of the same run that stand by now measured on this very model."""
    folder = _artifact_folder(model)
    assert folder is not None
    rows: list[str] = []
    for file in sorted((folder.parent / "latest").glob("*/manifest.json")):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        measured = manifest.get("details", {}).get("models", {}).get(made["stage"])
        if measured and made["key"] in manifest.get("parts", {}).values():
            rows += [_measure(manifest, name, found) for name, found in measured["measures"].items()]
    if not rows:
        return []
    return [
        "## Evaluation",
        "",
        "| evaluation | measure | accuracy | problems |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _measure(manifest: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> str:
    metric = manifest["details"]["metric"]
    score = found["rewards"].get(metric)
    shown = f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else ""
    return f"| {manifest['stage']} ({metric}) | {name} | {shown} | {manifest['details']['problems']} |"
