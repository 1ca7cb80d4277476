"""What a stage says of its own settings before anything is loaded: its class's `issues`, asked by the check.

The size of a model comes from the headers of its safetensors, else from its config; the memory is that of the first
GPU as `nvidia-smi` tells it, else the machine's. No paper.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError
from posttrain_plugins.models.folder import adapter_config
from posttrain_plugins.models.training_templates import chat_template_in
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.schema import Arguments, Options
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe import files
from posttrain_plugins.recipe.build import construct
from posttrain_plugins.recipe.check.columns import columns_of
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.check.template import template_text
from posttrain_plugins.recipe.lineage import critic_start, is_full
from posttrain_plugins.recipe.spec import DataFile, External, FromStage, Object, StageSpec, Use, flat
from posttrain_plugins.types import StageFacts

__all__ = ["memory_bytes", "parameters_in", "with_issues"]


def with_issues(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> dict[str, StageSpec]:
    """Ask every stage; what it calls a mistake goes onto the checker, what it warns of into its spec."""
    looked_through = dict(specs)
    for id, spec in specs.items():
        path = stages.by_id[id].path
        loaded = None if spec.plugin.file is not None else spec.plugin.load()
        is_whole = all(source is not None for _, source in flat(spec.inputs))  # what is not is told already
        if not isinstance(loaded, type) or not hasattr(loaded, "issues") or not is_whole:
            continue
        # Asked also where something else is wrong already, so that all is told at once; what it raises is then believed
        # to come from that.
        errors_before = len(checker.mistakes)
        try:
            issues = list(construct(loaded, {**spec.params, **spec.names()}).issues(_facts_of(spec, specs)))
        except PLUGIN_FAILURES as cause:  # the plugin boundary; a value of the wrong type is told already
            if not errors_before:
                checker.error(path, f"stage '{path[-1]}' cannot be looked through: {type(cause).__name__}: {cause}")
            continue
        for issue in issues:
            if not issue.is_warning:
                place = (*path, *(issue.field.split(".") if issue.field else ()))
                # a value that is wrong in itself has been told: what a stage then makes of it is no second mistake
                if issue.field is None or not checker.has_error(place, errors_before):
                    checker.error(place, f"stage '{path[-1]}': {issue.message}", issue.hint)
        looked_through[id] = replace(spec, warnings=tuple(issue for issue in issues if issue.is_warning))
    return looked_through


def _facts_of(spec: StageSpec, specs: Mapping[str, StageSpec]) -> StageFacts:
    """Gather what is known of a stage, without importing a user's file: of one, the best is believed."""
    name, target = next(iter(spec.configs.items()), ("", ""))
    given = spec.params.get(name)
    options = Options(of_config(target).fields if target else {}, given if isinstance(given, Mapping) else {})
    rewards, judges_steps = spec.inputs.get("rewards"), dict[str, bool]()
    for source in rewards if isinstance(rewards, tuple) else ():
        if isinstance(source, Use):
            is_file = source.plugin.file is not None
            judges_steps[source.name] = is_file or hasattr(source.plugin.load(), "step_scores")
        elif isinstance(source, FromStage):
            judges_steps[source.stage] = hasattr(registry.load("reward", source.reward_plugin), "step_scores")
    # A model has as many parameters as the one that its maker started from, back to the first: a folder, or a config.
    start, seen, parameters = spec.inputs.get("model"), set[str](), None
    while isinstance(start, FromStage) and start.stage in specs and start.stage not in seen:
        seen.add(start.stage)  # a circle is told later, and must end here
        made = specs[start.stage]
        start = made.inputs.get("model")
        if start is None:
            parameters = _by_config(made.params.get("config") or {})
    if isinstance(start, External):
        parameters = parameters_in(Path(start.path))
    return StageFacts(
        args=Arguments(options),
        trains_all=spec.adapter_mode != "continue" and is_full(spec.inputs.get("adapter")),
        parameters=parameters,
        loading=spec.loading,
        judges_steps=judges_steps,
        memory_bytes=memory_bytes,
        columns=_known_columns(spec, specs),
        chat_template=_chat_template(spec, specs),
        rows=(rows := _first_rows(spec.inputs.get("dataset"))),
        has_all_rows=0 < len(rows) < files.HEAD_ROWS,
        is_adapter=_is_adapter(spec.inputs.get("model"), specs),
        critic_start=critic_start(specs, spec),
        engine=spec.launch.engine if spec.launch is not None else "",
        is_made_conversational=_has_system_prompt(spec.inputs.get("dataset")),
    )


def _known_columns(spec: StageSpec, specs: Mapping[str, StageSpec]) -> tuple[str, ...] | None:
    try:
        return columns_of(spec.inputs.get("dataset"), specs)
    except InputError:  # the check of the columns tells it
        return None


def _first_rows(source: Any) -> Sequence[Mapping[str, Any]]:
    try:
        is_file = isinstance(source, DataFile) and source.is_local
        return (files.head(Path(source.path), source.options) or ()) if is_file else ()
    except InputError:  # the check of the columns tells it
        return ()


def _has_system_prompt(source: Any) -> bool:
    given = source.options if isinstance(source, DataFile) else getattr(source, "reserved", {})
    return bool(given.get("system_prompt"))


def _is_adapter(model: Any, specs: Mapping[str, StageSpec]) -> bool | None:
    if isinstance(model, External) and Path(model.path).is_dir():
        return bool(adapter_config(Path(model.path)))
    made = specs.get(model.stage) if isinstance(model, FromStage) else None
    if made is None or not made.configs:  # a stage that trains nothing, such as `combine`, may make either
        return None
    return made.adapter_mode == "continue" or not is_full(made.inputs.get("adapter"))


def _chat_template(spec: StageSpec, specs: Mapping[str, StageSpec]) -> str | None:
    """Return the text of the template that a stage trains with: its own, or that of the model it started from."""
    own, start, seen = spec.inputs.get("chat_template"), spec.inputs.get("model"), set[str]()
    several = spec.inputs.get("models")
    if start is None and isinstance(several, tuple) and several:
        start = several[0]  # of those that are measured the first stands for all
    while own is None and isinstance(start, FromStage) and start.stage in specs and start.stage not in seen:
        seen.add(start.stage)
        made = specs[start.stage]
        own, start = made.inputs.get("chat_template"), made.inputs.get("model")
    if own is None and isinstance(start, External):
        own = start.template
        if own is None and Path(start.path).is_dir():
            return chat_template_in(start.path)
    return template_text(own) if isinstance(own, Object) else None


# --- how large a model is, and what there is to hold it ---------------------------------------------------------------


def parameters_in(folder: Path) -> int | None:
    """Count the numbers in the weights of a model's folder, of an adapter's in those of its base; None if unknown."""
    base = adapter_config(folder).get("base_model_name_or_path")
    if base:
        return parameters_in(Path(str(base)))
    try:
        count = 0
        for file in folder.glob("*.safetensors"):
            with file.open("rb") as content:
                # https://huggingface.co/docs/safetensors: eight bytes of length, then JSON. A file that is something
                # else may begin with any length, so no more is read than a header can be.
                (length,) = struct.unpack("<Q", content.read(8))
                header = json.loads(content.read(min(length, 100_000_000)))
            tensors = header.items() if isinstance(header, dict) else ()
            count += sum(math.prod(tensor["shape"]) for name, tensor in tensors if name[:2] != "__")
        return count or _by_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def _by_config(config: Mapping[str, Any]) -> int | None:
    """Count the parameters of a decoder with gated MLPs, without norms and biases: within a few percent."""
    try:
        hidden, layers, inner = (int(config[k]) for k in ("hidden_size", "num_hidden_layers", "intermediate_size"))
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or hidden // heads)
        keys = int(config.get("num_key_value_heads") or heads)
    except (KeyError, TypeError, ValueError):
        return None
    attention = hidden * width * (2 * heads + 2 * keys)
    embedding = int(config.get("vocab_size") or 0) * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return layers * (attention + 3 * hidden * inner) + embedding


@cache
def memory_bytes() -> int:
    """Return the memory in bytes of the first GPU, or of the machine if there is none."""
    # torch would know, and takes seconds to import; the device file spares a machine without a GPU the subprocess.
    if Path("/dev/nvidia0").exists() and shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        mebibytes = subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.split()
        if mebibytes and mebibytes[0].isdigit():
            return int(mebibytes[0]) * 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
