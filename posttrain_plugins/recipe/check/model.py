"""The recipe's own model, `base`: where it comes from, and how all models of the recipe are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain_plugins.models.folder import TRUSTING
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.local_paths import existing_model
from posttrain_plugins.recipe.check.loops import RawStage, RawStages
from posttrain_plugins.recipe.check.template import read_template
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import FromStage, Object, Source

__all__ = ["Model", "read_model"]

MODEL_CONFIG = "trl:ModelConfig"
PEFT_IN_MODEL = ("use_peft", "lora_", "use_rslora", "use_dora")


@dataclass(frozen=True)
class Model:
    """What `base` stands for, None where the recipe has no model; `loading` are fields of TRL's `ModelConfig`."""

    source: Source = None
    loading: Mapping[str, Any] = field(default_factory=dict)


def read_model(checker: Checker, stages: RawStages) -> Model:
    """Read the section `model`; a model that a plugin makes becomes the first stage."""
    path: Keys = ("model",)
    value = checker.document.get(path)
    if isinstance(value, str):
        value = {"model_name_or_path": value}
    if not isinstance(value, Mapping):
        if value is not None:
            checker.error(path, f"'model' is a folder, a Hub id or a mapping, found {value!r}")
        return Model()
    if "use" in value:
        plugin = checker.plugin("stage", value["use"], path)
        own = plugin[1].fields if plugin is not None else value
        # One mapping holds two things: parameters of the plugin, and how the model that it makes is loaded afterwards.
        # A plugin's own parameter wins, or a plugin could not have one that ModelConfig happens to have, too.
        loading = {k: v for k, v in value.items() if k in of_config(MODEL_CONFIG).fields and k not in own}
        _check_loading(checker, path, loading)
        body = {k: v for k, v in value.items() if k not in loading}
        made = plugin[1].declares("produces") if plugin is not None else None
        if plugin is not None and made != "model":
            message = f"stage plugin '{value['use']}' makes {made}, expected a model"
            checker.error((*path, "use"), message, "use: pretrain")
        stages.put_first(RawStage("base", path, body, {}, plugin), "model" if made == "model" else None)
        return Model(FromStage("base", "model"), loading)
    if "gguf_file" in value:
        file = Path(str(value.get("model_name_or_path", ""))) / str(value["gguf_file"])
        message = "'gguf_file' is no key of 'model': the stage 'gguf' reads such a file"
        checker.error((*path, "gguf_file"), message, f"model: {{use: gguf, file: {file}}}", True)
        return Model()
    loading = {k: v for k, v in value.items() if k not in ("model_name_or_path", "chat_template")}
    _check_loading(checker, path, loading)
    target = value.get("model_name_or_path")
    if not isinstance(target, str):
        checker.error(path, "'model' needs 'model_name_or_path'", "a folder, a Hub id, or {use: pretrain, ...}")
        return Model(None, loading)
    found = existing_model(checker, "base", target, (*path, "model_name_or_path"), loading)
    if value.get("chat_template") is not None:
        template = read_template(checker, value["chat_template"], (*path, "chat_template"))
        found = replace(found, template=template if isinstance(template, Object) else None)
    return Model(found, loading)


def _check_loading(checker: Checker, path: Keys, loading: Mapping[str, Any]) -> None:
    """Check fields of `ModelConfig`; those of PEFT, which it has too, are adapters here: a stage may have several."""
    known = of_config(MODEL_CONFIG).fields
    for name, value in loading.items():
        if name in TRUSTING:
            checker.check_type((*path, name), bool, value)
        elif name.startswith(PEFT_IN_MODEL):
            message = f"'{name}' does not belong to 'model'"
            checker.error((*path, name), message, "name an adapter under 'adapters:'", True)
        else:
            checker.check_option((*path, name), value, known, "'model'")
