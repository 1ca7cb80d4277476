"""The card of an exported model: how it was made and what was measured, from the manifests of the run. No paper.

It says nothing that no manifest, and no card of a base or of data, says; where they do not say it, a line says so. The
front matter's `model-index` stands for test sets of the Hub alone, which its readers can look up; the table has all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from posttrain_plugins.publish.markdown import fenced, plain, table
from posttrain_plugins.publish.origins import Data, Origin, base_origin, data_of
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.lineage import lineage, made_in, measurements
from posttrain_plugins.types import ModelArtifact

__all__ = ["Exported", "model_card"]

Kind: TypeAlias = Literal["model", "reward model", "process reward model", "critic"]

PIPELINES: Mapping[str, str] = {
    "model": "text-generation",
    "reward model": "text-classification",
    "process reward model": "token-classification",
    "critic": "token-classification",
}
LOADERS: Mapping[str, str] = {
    "model": "AutoModelForCausalLM",
    "reward model": "AutoModelForSequenceClassification",
    "process reward model": "AutoModelForTokenClassification",
    "critic": "AutoModelForTokenClassification",
}
IS_WHAT: Mapping[str, str] = {
    "model": "It writes text.",
    "reward model": "It judges a completion: one logit, higher is better. It writes no text.",
    "process reward model": "It judges each step of a completion, at the step's last token. It writes no text.",
    "critic": "It gives the value of the state after each token, the critic of a policy. It writes no text.",
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        title: the model's name.
        architecture: the class that loads it.
        kind: what it does.
        is_adapter: an adapter without its base.
        merging: what merging changed in the logits.
        quantization: TRL `ModelConfig` fields of the saved weights.
    """

    title: str
    architecture: str
    kind: Kind = "model"
    is_adapter: bool = False
    merging: Mapping[str, float] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)


def model_card(artifact: ModelArtifact, exported: Exported) -> str:
    """Write Markdown with the Hub's front matter.

    Args:
        artifact: what was exported.
        exported: how it was written.
    """
    folder = made_in(Path(artifact.path))
    stages = list(lineage(folder)) if folder else []
    base = base_origin(stages[-1]) if stages else Origin(artifact.name)
    read = [(stage, data) for stage in _with_sources(stages) if (data := data_of(stage)) is not None]
    front = yaml.safe_dump(_front(exported, base, stages, read), sort_keys=False, allow_unicode=True)
    of_recipe = f" of the recipe {plain(folder.parent.name)}" if folder else ""
    lines = ["---", *front.splitlines(), "---", "", f"# {plain(exported.title)}", ""]
    lines += [
        f"`{exported.architecture}`, exported from {plain(artifact.name)}{of_recipe}. {IS_WHAT[exported.kind]}",
        "",
    ]
    lines += [*_loading(exported, base), *_licence(base), *_stages(stages), *_data(read), *_people(read)]
    lines += [*_evaluations(stages), *_weights(exported), *_again(stages)]
    return "\n".join(lines).rstrip() + "\n"


def _front(
    exported: Exported, base: Origin | None, stages: Sequence[Artifact], read: Sequence[tuple[Artifact, Data]]
) -> dict[str, Any]:
    values: dict[str, Any] = dict(base.card) if base else {}
    values |= {
        "library_name": "peft" if exported.is_adapter else "transformers",
        "pipeline_tag": PIPELINES[exported.kind],
    }
    if base and base.hub_id:
        is_trained = any(stage.manifest.get("start") is not None for stage in stages if _trains(stage))
        relation = "adapter" if exported.is_adapter else "finetune" if is_trained else "quantized"
        values |= {"base_model": base.hub_id, "base_model_relation": relation}
    hub = [data.origin.hub_id for _, data in read if data.origin.hub_id]
    if hub:
        values["datasets"] = sorted({*hub})
    values["tags"] = [
        "posttrain-plugins",
        "trl",
        *([exported.kind.replace(" ", "-")] if exported.kind != "model" else []),
    ]
    results = [_result(*found) for found in _measured(stages) if found[1] is not None and found[1].origin.hub_id]
    if results:
        values["model-index"] = [{"name": exported.title, "results": results}]
    return values


def _trains(stage: Artifact) -> bool:
    return "args" in {name.partition(".")[0] for name in stage.manifest.get("parts", {})}


def _result(
    evaluation: Artifact, data: Data | None, measure: str, metric: str, score: Mapping[str, Any]
) -> dict[str, Any]:
    assert data is not None
    task = {"task": {"type": "text-generation"}}
    dataset = {"type": data.origin.hub_id, "name": data.origin.name, "revision": data.content}
    figure = {"type": metric, "name": f"{metric}, {measure}", "value": score["mean"]}
    return {**task, "dataset": dataset, "metrics": [figure]}


def _with_sources(stages: Iterable[Artifact]) -> Iterator[Artifact]:
    """Yield stages and those that made their data, each once."""
    waiting, seen = list(stages), set[str]()
    while waiting:
        stage = waiting.pop(0)
        if stage.manifest["key"] not in seen:
            seen.add(stage.manifest["key"])
            yield stage
            data = data_of(stage)
            waiting += [data.made_by] if data and data.made_by else []


def _loading(exported: Exported, base: Origin | None) -> list[str]:
    package, loader = "transformers", LOADERS[exported.kind]
    lines = []
    if exported.is_adapter:
        package, loader = "peft", loader.replace("AutoModel", "AutoPeftModel")
        lines = [f"An adapter{f' of {plain(base.name)}' if base else ''}: it is loaded on its base.", ""]
    name = exported.title.replace('"', "")
    code = f'from {package} import {loader}\n\nmodel = {loader}.from_pretrained("{name}")'
    return [*lines, *fenced(code, "python"), ""]


def _licence(base: Origin | None) -> list[str]:
    if base is None:
        found = "The weights began at random, so no base brings a licence; whoever made them has to say one."
    elif base.licence:
        found = f"{plain(base.licence)}, as the card of the base {plain(base.name)} says it."
    else:
        found = f"Not known: no card of the base {plain(base.name)} that says one was found. Nothing is assumed."
    return ["## Licence", "", found, ""]


def _stages(stages: Sequence[Artifact]) -> list[str]:
    rows = [
        (
            stage.manifest["stage"],
            stage.manifest["use"],
            stage.manifest.get("start") or "",
            stage.manifest.get("parts", {}).get("seed", ""),
            stage.manifest["key"][:12],
            ", ".join(f"{name} {value:.4g}" for name, value in stage.metrics.items()),
        )
        for stage in reversed(stages)
    ]
    lines = table(("stage", "by", "from", "seed", "key", "figures"), rows)
    return ["## Stages", *lines] if lines else []


def _data(read: Sequence[tuple[Artifact, Data]]) -> list[str]:
    rows = [
        (stage.manifest["stage"], data.origin.name, data.kind, data.content[:40], data.origin.licence or "not known")
        for stage, data in read
    ]
    lines = table(("stage", "data", "from", "revision or hash", "licence"), rows)
    return ["## Data", *lines] if lines else []


def _people(read: Sequence[tuple[Artifact, Data]]) -> list[str]:
    """Tell of the data that people made: how much, by how many, how far they agree, by which guideline."""
    lines: list[str] = []
    for _, data in read:
        made = data.made_by
        decisions = made.details.get("decisions") if made else None
        if made is None or not isinstance(decisions, dict):
            continue
        figures = {**made.metrics, **{name: value for name, value in decisions.items() if _is_plain(value)}}
        guideline = str(made.manifest.get("parts", {}).get("guideline", '""'))
        if guideline != '""':
            is_hash = len(guideline) == 66 and guideline.strip('"').isalnum()
            digest = guideline.strip('"') if is_hash else hashlib.sha256(guideline.encode()).hexdigest()
            figures["guideline (sha256)"] = digest
        rows = [(name, f"{value:.4g}" if isinstance(value, float) else value) for name, value in figures.items()]
        lines += [f"### {plain(made.manifest['stage'])}", *table(("what", "value"), rows)]
    return ["## Made by people", "", *lines] if lines else []


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _measured(stages: Sequence[Artifact]) -> Iterator[tuple[Artifact, Data | None, str, str, Mapping[str, Any]]]:
    """Yield what was measured of the model: by which evaluation, on what, by which measure, of what, how surely."""
    for evaluation in measurements(stages[0]) if stages else ():
        details = evaluation.details
        data = data_of(evaluation)
        for measure, found in details["models"][stages[0].manifest["stage"]]["measures"].items():
            for metric, score in found["rewards"].items():
                if score:
                    yield evaluation, data, measure, metric, score


def _evaluations(stages: Sequence[Artifact]) -> list[str]:
    rows = []
    for evaluation, data, measure, metric, score in _measured(stages):
        details = evaluation.details
        on = f"{data.origin.name} ({data.content[:12]})" if data else ""
        shown = f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        is_main = metric == details["metric"]
        name = evaluation.manifest["stage"]
        rows.append((name, on, measure, f"{metric}{' (main)' if is_main else ''}", shown, details["problems"]))
    head = ("evaluation", "on", "measure", "of", "mean and 95 % interval", "problems")
    lines = table(head, rows)
    return ["## Evaluation", *lines] if lines else []


def _weights(exported: Exported) -> list[str]:
    found = [f"- {plain(name.replace('_', ' '))} by merging: {value:.3g}" for name, value in exported.merging.items()]
    found += [f"- {plain(name)}: {plain(value)}" for name, value in exported.quantization.items()]
    return ["## Weights", "", *found, ""] if found else []


def _again(stages: Sequence[Artifact]) -> list[str]:
    if not stages:
        return []
    manifest = stages[0].manifest
    versions = {"python": manifest.get("python"), **manifest.get("versions", {})}
    shown = ", ".join(f"{plain(name)} {plain(version)}" for name, version in versions.items() if version)
    recipes = sorted({stage.folder.resolve().parent.name for stage in stages})
    others = f" Stages of other recipes: {', '.join(map(plain, recipes[1:]))}." if len(recipes) > 1 else ""
    how = "`resolved.yaml` beside this card is the recipe; local paths in it are the maker's own."
    return [
        "## To make it again",
        "",
        f"{how}{others}",
        "",
        *fenced("posttrain run resolved.yaml", "bash"),
        "",
        f"{shown}.",
        "",
    ]
