"""The card of an exported model: how it was made and what was measured, from the manifests of the run. No paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.lineage import lineage, made_in, measurements
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
    folder = made_in(Path(artifact.path))
    of_recipe = f" of the recipe `{folder.parent.name}`" if folder else ""
    lines = ["---", "library_name: transformers", "tags:", "- posttrain-plugins", "---", "", f"# {title}", ""]
    lines += [f"`{architecture}`, exported from `{artifact.name}`{of_recipe}.", ""]
    stages = list(lineage(folder)) if folder else []
    if stages:
        lines += ["## Stages", "", "| stage | by | from | figures |", "| --- | --- | --- | --- |"]
        for made in reversed(stages):
            figures = ", ".join(f"{name} {value:.4g}" for name, value in made.metrics.items())
            stage, use, start = (made.manifest.get(name) or "" for name in ("stage", "use", "start"))
            lines.append(f"| {stage} | {use} | {start} | {figures} |")
        measured = list(_measurements(stages[0]))
        if measured:
            header = ["| evaluation | measure | accuracy | problems |", "| --- | --- | --- | --- |"]
            lines += ["", "## Evaluation", "", *header, *measured]
        versions = ", ".join(f"{name} {version}" for name, version in stages[0].manifest.get("versions", {}).items())
        lines += ["", "## Versions", "", f"{versions}.", ""]
    if merging or quantization:
        lines += ["## Weights", ""]
        lines += [f"- {name.replace('_', ' ')} by merging: {value:.3g}" for name, value in merging.items()]
        lines += [f"- {name}: {value}" for name, value in quantization.items()] + [""]
    return "\n".join(lines)


def _measurements(made: Artifact) -> Iterator[str]:
    """Yield a row for each measure of each evaluation of the model."""
    for evaluation in measurements(made):
        details = evaluation.details
        for name, found in details["models"][made.manifest["stage"]]["measures"].items():
            score = found["rewards"].get(details["metric"])
            shown = f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else ""
            stage = evaluation.manifest["stage"]
            yield f"| {stage} ({details['metric']}) | {name} | {shown} | {details['problems']} |"
