"""`plan --masks`: which tokens carry loss in each training stage, before anything is trained. No weights are loaded.

A stage is called as for training, with `context.preview` set, so a stranger's stage that trains through
`trainers.training` is shown like ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError
from posttrain_plugins.models.load import load_tokenizer
from posttrain_plugins.recipe.plan.plan import Plan, PlannedStage
from posttrain_plugins.recipe.run.inputs import Resolver, object_of, template_of
from posttrain_plugins.recipe.spec import External, FromStage, Input, Object, StageSpec, flat
from posttrain_plugins.types import ModelArtifact, ResolvedReward, StageContext

__all__ = ["preview"]


def preview(plan: Plan, rows: int = 2, only: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Stage -> what `trainers.loss_masks.masks` gives of a few rows; or `missing`, what is not yet made; or `error`."""
    rows = max(rows, 2)  # KTO takes no less
    shown = {}
    for stage in plan.stages:
        if stage.starting_point is None or (only and stage.id not in only):
            continue
        try:
            shown[stage.id] = _shown(plan, stage, rows)
        except _NotYetMade as missing:
            shown[stage.id] = {"missing": str(missing)}
        except PLUGIN_FAILURES as cause:  # the plugin boundary; training would fail the same way
            shown[stage.id] = {
                "error": str(cause) if isinstance(cause, InputError) else f"{type(cause).__name__}: {cause}"
            }
    return shown


class _NotYetMade(Exception):
    """What a stage needs comes from one that has not run."""


class _Anything:
    """Stands for a reward: which tokens carry loss does not depend on it."""

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [0.0 for _ in completions]

    def step_scores(self, prompts: Any, completions: Any, **columns: Any) -> list[list[float]]:
        return [[0.0] for _ in completions]


class _Quiet:
    def progress(self, *args: Any) -> None: ...
    def note(self, message: str) -> None: ...


def _shown(plan: Plan, stage: PlannedStage, rows: int) -> dict[str, Any]:
    spec = stage.spec
    done = {planned.id: planned.artifact for planned in plan.stages if planned.artifact is not None}
    waits = [
        s.stage for _, s in flat({"d": spec.inputs.get("dataset")}) if isinstance(s, FromStage) and s.stage not in done
    ]
    if waits:
        raise _NotYetMade(f"its data is made by stage '{waits[0]}', which has not run")
    data = Resolver(plan.recipe, done).dataset(spec, "dataset")
    with tempfile.TemporaryDirectory(prefix="posttrain-") as folder:
        # A folder with a tokenizer and no weights: what carries loss does not depend on them, and a base of 70 GB stays
        # where it is.
        words = _tokenizer(plan, spec)
        words.save_pretrained(folder)
        inputs = _inputs(spec, ModelArtifact("stand-in", folder), data.select(range(min(rows, len(data)))))
        args = next((dict(spec.params.get(name) or {}) for name in spec.configs), {})
        seed = int(args.get("seed", plan.recipe.seed))
        context = StageContext(stage.id, Path(folder), seed, inputs, None, _Quiet(), lambda: False, args, preview=rows)
        result = spec.plugin.load()(**{**spec.params, **spec.names()})(context)
    found = result.details.get("masks")
    if found is None:
        raise InputError(f"stage '{stage.id}' does not train through posttrain_plugins.trainers.training")
    return dict(found)


def _inputs(spec: StageSpec, model: ModelArtifact, dataset: Any) -> dict[str, Any]:
    """What the stage is given: its rows, and a stand-in for every model and reward."""
    inputs: dict[str, Any] = {"model": model, "dataset": dataset}
    for name, field in spec.schema.fields.items():
        source = spec.inputs.get(name)
        if field.ref is None or source is None or name in inputs:
            continue
        if field.ref.kind == "model":
            inputs[name] = model
        elif field.ref.kind == "reward":
            names = spec.names()[name]
            inputs[name] = [ResolvedReward(one, _Anything()) for one in (names if isinstance(names, list) else [names])]
    return inputs


def _tokenizer(plan: Plan, spec: StageSpec) -> Any:
    """The one that the stage would find: the nearest model's before it, with the template that it is given."""
    words = _words(plan, spec.inputs.get("model") or spec.inputs.get("tokenizer"))
    template = spec.inputs.get("chat_template")
    if isinstance(template, Object):
        words.chat_template = template_of(template)
    return words


def _words(plan: Plan, source: Input) -> Any:
    if isinstance(source, FromStage):
        stage = plan[source.stage]
        if stage.artifact is None:
            return _tokenizer(plan, stage.spec)
        return load_tokenizer(str(stage.artifact.model_path))
    if isinstance(source, External):
        return load_tokenizer(source.path, source.loading, template_of(source.template))
    if isinstance(source, Object):
        made = object_of(source.target)
        if isinstance(made, str | Path):
            return load_tokenizer(made)
        return made if hasattr(made, "pad_token_id") else made()
    raise _NotYetMade("its tokenizer is not yet made")
