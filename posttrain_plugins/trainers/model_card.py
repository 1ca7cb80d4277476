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
    """Write Markdown with Hugging Face's front matter; nothing is in it that no manifest says.

    Args:
        artifact: what was exported.
        title: the folder's name.
        architecture: the class that loads it.
        merging: what merging changed in the logits.
        quantization: TRL `ModelConfig` fields of the saved weights.
    """
    model = Path(artifact.path)
    # the stage that made it: the nearest folder above with a manifest
    made_in = next((folder for folder in (model, *model.parents) if (folder / "manifest.json").is_file()), None)
    of_recipe = f" of the recipe `{made_in.parent.name}`" if made_in else ""
    lines = ["---", "library_name: transformers", "tags:", "- posttrain-plugins", "---", "", f"# {title}", ""]
    lines += [f"`{architecture}`, exported from `{artifact.name}`{of_recipe}.", ""]
    stages = list(_lineage(made_in))
    if made_in and stages:
        lines += ["## Stages", "", "| stage | by | from | figures |", "| --- | --- | --- | --- |"]
        for made in reversed(stages):
            figures = ", ".join(f"{name} {value:.4g}" for name, value in made["metrics"].items())
            lines.append(f"| {made['stage']} | {made['use']} | {made.get('start') or ''} | {figures} |")
        measured = list(_measurements(made_in, stages[0]))
        if measured:
            header = ["| evaluation | measure | accuracy | problems |", "| --- | --- | --- | --- |"]
            lines += ["", "## Evaluation", "", *header, *measured]
        versions = ", ".join(f"{name} {version}" for name, version in stages[0].get("versions", {}).items())
        lines += ["", "## Versions", "", f"{versions}.", ""]
    if merging or quantization:
        lines += ["## Weights", ""]
        lines += [f"- {name.replace('_', ' ')} by merging: {value:.3g}" for name, value in merging.items()]
        lines += [f"- {name}: {value}" for name, value in quantization.items()] + [""]
    return "\n".join(lines)


def _lineage(folder: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the manifest of a stage, and those of the stages that made what it started from."""
    while folder is not None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        yield manifest
        start, key = manifest.get("start"), str(manifest.get("parts", {}).get("model", ""))
        # another recipe of the same runs folder may have made it
        folder = next(iter(folder.parents[1].glob(f"*/{start}-{key[:12]}")), None) if start and key else None


def _measurements(folder: Path, made: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row for what each evaluation of the same run that stands by now measured on this very model."""
    for file in sorted((folder.parent / "latest").glob("*/manifest.json")):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        details = manifest.get("details", {})
        measured = details.get("models", {}).get(made["stage"])
        if measured and made["key"] in manifest.get("parts", {}).values():  # not one that was trained again since
            for name, found in measured["measures"].items():
                score = found["rewards"].get(details["metric"])
                shown = f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else ""
                yield f"| {manifest['stage']} ({details['metric']}) | {name} | {shown} | {details['problems']} |"
