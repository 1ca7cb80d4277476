"""One stage as it is written -> its `StageSpec`: parameters by their type, references, `args` by their config class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.schema import Schema
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.check.adapters import check_adapters
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStage
from posttrain_plugins.recipe.check.references import RESERVED, References
from posttrain_plugins.recipe.check.template import read_template
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import Input, StageSpec
from posttrain_plugins.types import AdapterMode

__all__ = ["read_stage", "reserved_words"]

OURS_IN_ARGS = {
    "output_dir": "the run decides where a stage writes",
    "resume_from_checkpoint": "a run resumes by itself",
}


def read_stage(checker: Checker, raw: RawStage, references: References) -> StageSpec:
    """Checks a stage whose plugin is known and fills in the plugin's defaults."""
    plugin = registry.find("stage", str(raw.body["use"]), checker.folder)
    found = checker.schemas[plugin]
    assert found is not None
    errors_before = len(checker.mistakes)
    given = {k: v for k, v in raw.body.items() if k != "use"}
    mode = _adapter_mode(checker, raw, given, found)
    reserved = _template(checker, raw, given, found)
    checker.check_keys(raw.path, given, found, f"stage '{raw.path[-1]}'", RESERVED["stage"])
    values = {name: given.get(name, None if f.is_required else f.default) for name, f in found.fields.items()}
    inputs = {
        name: references.input(field, values[name], (*raw.path, name), raw.scope)
        for name, field in found.fields.items()
        if field.ref is not None and values[name] is not None
    }
    plain = {name: field for name, field in found.fields.items() if field.ref is None}
    params = {n: values[n] for n, f in plain.items() if n in given or (f.is_literal and not f.is_required)}
    configs = {name: field.config.target for name, field in plain.items() if field.config is not None}
    for name, field in plain.items():
        if name in given:
            checker.check_field((*raw.path, name), field, given[name])
    for name, target in configs.items():
        _check_args(checker, (*raw.path, name), target, values[name])
    produces: Any = references.stages.produces[raw.id]
    loading = references.model.loading
    inputs |= reserved
    outputs = tuple(found.declares("outputs"))
    spec = StageSpec(
        raw.id, plugin, produces, params, inputs, configs, loading, mode, reserved=tuple(reserved), outputs=outputs
    )
    check_adapters(checker, raw.path, spec, found)
    if len(checker.mistakes) == errors_before:
        checker.check_built(plugin, given, raw.path)
    return spec


def reserved_words(found: Schema) -> dict[str, Any]:
    """Word -> type: what the recipe may say of a stage beside its own parameters, which go before."""
    names = set(found.fields)
    trains = "model" in names and any(field.config is not None for field in found.fields.values())
    words = {"adapter_mode": AdapterMode} if {"model", "adapter"} <= names else {}
    return {
        name: kind
        for name, kind in {**words, **({"chat_template": str} if trains else {})}.items()
        if name not in names
    }


def _adapter_mode(checker: Checker, raw: RawStage, given: dict[str, Any], found: Schema) -> AdapterMode | None:
    """Takes the reserved word `adapter_mode` out of what a stage with a model and an adapter is given."""
    if "adapter_mode" not in reserved_words(found):
        return None
    mode = given.pop("adapter_mode", None)
    if mode is not None:
        checker.check_type((*raw.path, "adapter_mode"), AdapterMode, mode)
    if mode == "stack" and given.get("adapter") is None:
        checker.error((*raw.path, "adapter_mode"), "adapter_mode 'stack' needs an adapter", "adapter: {use: lora}")
    return mode  # type: ignore[no-any-return]


def _template(checker: Checker, raw: RawStage, given: dict[str, Any], found: Schema) -> dict[str, Input]:
    """Takes the reserved word `chat_template` out of what a stage that trains a model is given."""
    if "chat_template" not in reserved_words(found) or given.get("chat_template") is None:
        return {}
    return {"chat_template": read_template(checker, given.pop("chat_template"), (*raw.path, "chat_template"))}


def _check_args(checker: Checker, path: Keys, target: str, value: Any) -> None:
    """The options of a trainer against the class that will take them, such as `trl:SFTConfig`."""
    if not isinstance(value, Mapping):
        return
    try:
        known = of_config(target).fields
    except LookupError as cause:
        checker.error(path, f"config class {target} cannot be read: {cause}", "pip install it")
        return
    for name, item in value.items():
        if name in OURS_IN_ARGS:
            checker.error((*path, name), f"'{name}' cannot be set: {OURS_IN_ARGS[name]}", "remove it", True)
        else:
            checker.check_option((*path, name), item, known, target.partition(":")[2])
