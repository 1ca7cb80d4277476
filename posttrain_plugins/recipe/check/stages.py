"""One stage as it is written -> its `StageSpec`: parameters by their type, references, `args` by their config class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_plugins.plugins.schema import Schema
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.check.adapters import check_adapters
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.launch import read_launch
from posttrain_plugins.recipe.check.loops import RawStage
from posttrain_plugins.recipe.check.references import RESERVED, References
from posttrain_plugins.recipe.check.template import read_template
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import Input, Launch, StageSpec
from posttrain_plugins.types import AdapterMode

__all__ = ["read_stage", "reserved_words"]

OURS_IN_ARGS = {
    "output_dir": "the run decides where a stage writes",
    "resume_from_checkpoint": "a run resumes by itself",
}


def read_stage(checker: Checker, raw: RawStage, references: References) -> StageSpec:
    """Check a stage whose plugin is known, and fill in the plugin's defaults."""
    assert raw.plugin is not None
    plugin, schema = raw.plugin
    errors_before = len(checker.mistakes)
    given = {k: v for k, v in raw.body.items() if k != "use"}
    mode, reserved, launch = _take_reserved(checker, raw, given, schema)
    for word in ("tools", "environment_factory"):
        if word in given and word not in schema.fields and not schema.is_open:
            del given[word]
            found = f"stage '{raw.path[-1]}' cannot call tools: what {plugin.name} runs has no loop for them"
            checker.error((*raw.path, word), found, "stages with one: grpo, ppo, sample, evaluate", True)
    checker.check_keys(raw.path, given, schema, f"stage '{raw.path[-1]}'", RESERVED["stage"])
    fields = schema.fields
    values = {name: given.get(name, None if f.is_required else f.default) for name, f in fields.items()}
    for name, field in fields.items():
        if name not in given and field.ref is not None:
            checker.owners[*raw.path, name] = plugin.distribution
    inputs = {
        name: (references.earlier_judge(plugin, schema, values[name], raw.scope) if field.ref.kind == "model" else None)
        or references.input(field, values[name], (*raw.path, name), raw.scope)
        for name, field in fields.items()
        if field.ref is not None and values[name] is not None
    }
    plain = {name: field for name, field in fields.items() if field.ref is None}
    # A default that a source file computes is not known here: it is left out, and the class fills it in itself.
    params = {n: values[n] for n, f in plain.items() if n in given or (f.is_literal and not f.is_required)}
    configs = {name: field.config.target for name, field in plain.items() if field.config is not None}
    for name, field in plain.items():
        if name in given:
            checker.check_field((*raw.path, name), field, given[name])
    for name, target in configs.items():
        _check_args(checker, (*raw.path, name), target, values[name])
    spec = StageSpec(
        raw.id,
        plugin,
        references.stages.produces[raw.id],  # type: ignore[arg-type]
        params,
        inputs | reserved,
        configs,
        references.model.loading,
        mode,
        reserved=tuple(reserved),
        outputs=tuple(schema.declares("outputs")),
        schema=schema,
        launch=launch,
    )
    check_adapters(checker, raw.path, spec)
    if len(checker.mistakes) == errors_before:  # else the class would refuse, in its own words, what is told already
        checker.check_built(plugin, given, raw.path)
    return spec


def reserved_words(schema: Schema) -> dict[str, Any]:
    """Return word -> type: what the recipe may say of a stage beside its own parameters, which go before."""
    names = set(schema.fields)
    words = dict[str, Any]()
    if {"model", "adapter"} <= names:
        words["adapter_mode"] = AdapterMode
    trains = any(field.config is not None for field in schema.fields.values())
    if "model" in names and trains:
        words["chat_template"] = str
    if trains and schema.declares("produces") in ("model", "reward"):
        words["launch"] = str | dict[str, Any]
    return {name: kind for name, kind in words.items() if name not in names}


def _take_reserved(
    checker: Checker, raw: RawStage, given: dict[str, Any], schema: Schema
) -> tuple[AdapterMode | None, dict[str, Input], Launch | None]:
    """Take the recipe's own words out of what a stage is given: its mode, `chat_template` as an input, its launch."""
    words = reserved_words(schema)
    launch = None
    if "launch" in words:
        launch = read_launch(checker, given.pop("launch", None), (*raw.path, "launch"))
    mode: AdapterMode | None = given.pop("adapter_mode", None) if "adapter_mode" in words else None
    if mode is not None:
        checker.check_type((*raw.path, "adapter_mode"), AdapterMode, mode)
    if mode == "stack" and given.get("adapter") is None:
        checker.error((*raw.path, "adapter_mode"), "adapter_mode 'stack' needs an adapter", "adapter: {use: lora}")
    if "chat_template" not in words or given.get("chat_template") is None:
        return mode, {}, launch
    template = read_template(checker, given.pop("chat_template"), (*raw.path, "chat_template"))
    return mode, {"chat_template": template}, launch


def _check_args(checker: Checker, path: Keys, target: str, value: Any) -> None:
    """Check the options of a trainer against the class that will take them, such as `trl:SFTConfig`.

    The class is read from its source: importing TRL takes seconds, and `validate` answers in a fraction of one.
    """
    if not isinstance(value, Mapping):  # told as a parameter of the wrong type
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
