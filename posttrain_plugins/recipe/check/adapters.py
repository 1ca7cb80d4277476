"""The adapters of a stage under check: what each can, and whether that is what the stage needs."""

from __future__ import annotations

import contextlib
import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain_plugins.models import adapter_compatibility
from posttrain_plugins.models.adapter_types import PeftTypeAbilities, abilities, config_class, why_unmergeable
from posttrain_plugins.models.folder import adapter_config
from posttrain_plugins.plugins.schema import Options, Schema
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.lineage import layers, mode_of
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import StageSpec, Use

__all__ = ["check_adapters", "check_merges", "with_named_fields"]


def check_adapters(checker: Checker, path: Keys, spec: StageSpec) -> None:
    """Check that a stage's adapters can do what the stage needs of them, before anything is loaded."""
    fields = spec.schema.fields
    arguments = ChainMap[str, Any]()  # what the trainer's config will hold, as far as its source tells
    for name, target in spec.configs.items():
        with contextlib.suppress(LookupError):  # told by the check of the stage
            given = spec.params.get(name)
            options = Options(of_config(target).fields, given if isinstance(given, Mapping) else {})
            arguments.maps.insert(0, options)  # type: ignore[arg-type]
    for role, use in spec.inputs.items():
        if role not in fields or not isinstance(use, Use) or use.kind != "adapter":
            continue
        if use.schema.declares("is_full"):
            if role == "critic" and use.schema.declares("prepare"):
                message = f"stage '{path[-1]}': {adapter_compatibility.no_set_up(use.name)}"
                checker.error((*path, role), message, adapter_compatibility.PLAIN_CRITIC)
            _check_full(checker, (*path, role), spec)
            continue
        peft = _abilities(use)
        if peft is None:
            continue
        situation = adapter_compatibility.AdapterInStage(
            peft,
            use.params,
            arguments,
            spec.loading,
            refuses=spec.schema.declares("refuses"),
            reference=str(spec.schema.declares("reference")),
            role=role,
        )
        for problem in adapter_compatibility.incompatibilities(situation):
            # At the option itself if the recipe sets it; a default that does not fit is told at the stage.
            field, _, name = problem.where.partition(".")
            where = (*path, field, name) if name in spec.params.get(field, {}) else (*path, field)
            message = f"adapter '{use.name}' in stage '{path[-1]}': {problem.message}"
            checker.error(where if checker.document.get(where) is not None else path, message, problem.hint)
    if "adapter" in fields and spec.inputs.get("adapter") is None:
        _check_full(checker, (*path, "adapter"), spec)


def check_merges(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> None:
    """Check that adapters which a stage merges, or puts another one on, are of a type that lets it.

    A stage merges that says `merges`, or whose `adapter_mode` is that, given or chosen (`stack.choose_mode`). After all
    stages are read: what adapters a model has, the stages say that make it.
    """
    for id, spec in specs.items():
        below = layers(specs, spec.inputs.get("model") or spec.inputs.get("reward"))
        merges = spec.schema.declares("merges") and spec.params.get("merge") is not False
        mode = "merge" if merges else mode_of(specs, spec) if spec.configs else None
        for name, made_of in zip(below.adapters, below.made_of, strict=True):
            found = _abilities(made_of)
            if found is None:
                continue
            what = f"the adapter of '{name}'"
            if isinstance(made_of, Use):
                what = f"the adapter '{made_of.name}' of stage '{name}'"
            cure = "adapter_mode: continue, or start from what it was trained on"
            if mode == "merge" and not found.can_merge:
                message = f"{what} cannot be merged: {found.name}"
                if merges:
                    cure = f"train '{name}' with lora, or load its folder by PEFT"
                elif not found.is_prompt and isinstance(spec.inputs.get("adapter"), Use):
                    cure = "adapter_mode: stack, which leaves it in force below the new one"
                checker.error(stages.by_id[id].path, message, cure)
            elif mode == "stack" and found.is_prompt:
                checker.error(stages.by_id[id].path, f"{what} cannot lie below another: {found.name}", cure)


def _abilities(adapter: Use | Path) -> PeftTypeAbilities | None:
    """Return what the type of an adapter can and its plugin does not deny; None if nobody says what it cannot.

    Args:
        adapter: as a recipe names it; or the folder of a saved one, beside which its plugin has left what it denies.
    """
    found = None
    # Unknown: a type that a plugin brings, and one whose parameter, which the target names, is missing, as is told.
    with contextlib.suppress(LookupError):
        if isinstance(adapter, Use):
            name, can_merge = adapter.name, bool(adapter.schema.declares("can_merge"))
            target = adapter.schema.declares("params_of")
            found = abilities(target) if target else None
        else:
            name, can_merge = str(adapter_config(adapter).get("peft_type")), why_unmergeable(adapter) is None
            found = abilities(config_class(name))
    unknown = PeftTypeAbilities(name, False, False, can_merge=False, quantizes=True, shares=True)
    return found if can_merge else replace(found or unknown, can_merge=False)


def with_named_fields(checker: Checker, schema: Schema, given: Mapping[str, Any], path: Keys) -> Schema | None:
    """Resolve `params_of = "peft:{peft_type}"`: a parameter names the type whose fields the other parameters are.

    Returns:
        The schema with these fields and that class as its `params_of`; None if there is no such type, which is told.
    """
    target = str(schema.declares("params_of"))
    names = re.findall(r"\{(\w+)\}", target)
    if not names or any(name not in given for name in names):
        return schema
    target = target.format(**given)
    package, _, name = target.partition(":")
    try:
        target = config_class(name) if package == "peft" and name.isupper() else target  # `peft:LOHA`: PEFT's own name
        fields = {**of_config(target).fields, **schema.fields}
    except LookupError as cause:
        checker.error((*path, names[0]), str(cause))
        return None
    return replace(schema, fields=fields, attributes={**schema.attributes, "params_of": target}, is_open=False)


def _check_full(checker: Checker, path: Keys, spec: StageSpec) -> None:
    """Refuse to train the weights of a quantized model: they are packed integers. An adapter on it can be trained."""
    if spec.adapter_mode == "continue":  # the model is an adapter already, and that is trained
        return
    quantized = next((name for name in adapter_compatibility.QUANTIZED if spec.loading.get(name) is True), None)
    if quantized and path[-1] == "adapter" and spec.inputs.get("model") and spec.produces in ("model", "reward"):
        message = f"stage '{path[-2]}' trains all parameters, but the model has {quantized}"
        checker.error(path, message, f"adapter: {{use: lora}}, or remove {quantized}")
