"""The adapters of a stage under check: what each can, and whether that is what the stage needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from posttrain_plugins.models import adapter_compatibility
from posttrain_plugins.models.adapter_types import PeftTypeAbilities, abilities, config_class
from posttrain_plugins.plugins.schema import Schema
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import FromStage, StageSpec, Use

__all__ = ["check_adapters", "check_merges", "with_named_fields"]


def check_adapters(checker: Checker, path: Keys, spec: StageSpec, found: Schema) -> None:
    """Tells what cannot work, before anything is loaded."""
    args = _arguments(spec)
    for role, use in _adapters(spec, found):
        schema = checker.schemas.get(use.plugin)
        if schema is not None and schema.declares("is_full"):
            if role == "critic" and schema.declares("prepare"):
                message = f"stage '{path[-1]}': {adapter_compatibility.no_set_up(use.name)}"
                checker.error((*path, role), message, adapter_compatibility.PLAIN_CRITIC)
            _check_full(checker, (*path, role), spec)
            continue
        peft = _abilities(checker, use)
        if peft is None:
            continue
        situation = adapter_compatibility.Use(
            peft,
            use.params,
            args,
            spec.loading,
            refuses=found.declares("refuses"),
            reference=str(found.declares("reference")),
            role=role,
        )
        for refusal in adapter_compatibility.refusals(situation):
            field, _, name = refusal.where.partition(".")
            where = (*path, field, name) if name in spec.params.get(field, {}) else (*path, field)
            message = f"adapter '{use.name}' in stage '{path[-1]}': {refusal.message}"
            checker.error(where if checker.document.get(where) is not None else path, message, refusal.hint)
    if "adapter" in found.fields and spec.inputs.get("adapter") is None:
        _check_full(checker, (*path, "adapter"), spec)


def check_merges(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> None:
    """A stage that `merges` needs a model whose adapter can be merged."""
    for id, spec in specs.items():
        found = checker.schemas[spec.plugin]
        source = spec.inputs.get("model") or spec.inputs.get("reward")
        maker = specs.get(source.stage) if isinstance(source, FromStage) else None
        adapter = maker.inputs.get("adapter") if maker is not None else None
        if found is None or not found.declares("merges") or not isinstance(adapter, Use):
            continue
        peft = _abilities(checker, adapter)
        if peft is not None and not peft.merges:
            assert isinstance(source, FromStage)
            message = f"the adapter '{adapter.name}' of stage '{source.stage}' cannot be merged: {peft.name}"
            checker.error(
                stages.by_id[id].path, message, f"train '{source.stage}' with lora, or load its folder by PEFT"
            )


def _abilities(checker: Checker, use: Use) -> PeftTypeAbilities | None:
    """What the type of an adapter can; None where its plugin does not say its type."""
    schema = checker.schemas.get(use.plugin)
    target = schema.declares("params_of") if schema is not None else ""
    try:
        return abilities(_class_of(target.format(**use.params))) if target else None
    except LookupError:  # also a parameter that the target names, and that is missing: told elsewhere
        return None


def with_named_fields(checker: Checker, found: Schema, given: Mapping[str, Any], path: Keys) -> Schema | None:
    """`params_of = "peft:{peft_type}"`: a parameter names the type whose fields the other parameters are.

    Returns:
        The schema with these fields; None where there is no such type, which is told.
    """
    target = str(found.declares("params_of"))
    names = re.findall(r"\{(\w+)\}", target)
    if not names or any(name not in given for name in names):
        return found
    try:
        fields = of_config(_class_of(target.format(**given))).fields
    except LookupError as cause:
        checker.error((*path, names[0]), str(cause))
        return None
    return replace(found, fields={**fields, **found.fields}, is_open=False)


def _adapters(spec: StageSpec, found: Schema) -> Iterator[tuple[str, Use]]:
    for name, field in found.fields.items():
        source = spec.inputs.get(name)
        if field.ref is not None and field.ref.kind == "adapter" and isinstance(source, Use):
            yield name, source


def _class_of(target: str) -> str:
    """`peft:LOHA`, of the plugin that takes any type, names the type."""
    package, _, name = target.partition(":")
    return config_class(name) if package == "peft" and name.isupper() else target


def _arguments(spec: StageSpec) -> Mapping[str, Any]:
    """What the trainer's config will hold, as far as its source tells."""
    arguments: dict[str, Any] = {}
    for name, target in spec.configs.items():
        try:
            fields = of_config(target).fields
        except LookupError:
            continue
        arguments |= {key: field.default for key, field in fields.items() if field.is_literal and not field.is_required}
        given = spec.params.get(name)
        arguments |= given if isinstance(given, Mapping) else {}
    return arguments


def _check_full(checker: Checker, path: Keys, spec: StageSpec) -> None:
    """The weights of a quantized model cannot be trained; an adapter on it can."""
    if spec.adapter_mode == "continue":
        return
    quantized = next((name for name in adapter_compatibility.QUANTIZED if spec.loading.get(name) is True), None)
    if quantized and path[-1] == "adapter" and spec.inputs.get("model") and spec.produces in ("model", "reward"):
        message = f"stage '{path[-2]}' trains all parameters, but the model has {quantized}"
        checker.error(path, message, f"adapter: {{use: lora}}, or remove {quantized}")
