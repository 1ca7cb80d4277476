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
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from posttrain_plugins.models.folder import adapter_config
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.build import construct
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.lineage import is_full
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import External, FromStage, Input, Source, StageSpec, Use, flat
from posttrain_plugins.types import StageFacts

__all__ = ["memory_bytes", "parameters_in", "with_issues"]


def with_issues(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> dict[str, StageSpec]:
    """Asks every stage; what it calls a mistake goes onto the checker, what it warns of into its spec."""
    return {id: _asked(checker, stages.by_id[id].path, spec, specs) for id, spec in specs.items()}


def _asked(checker: Checker, path: Keys, spec: StageSpec, specs: Mapping[str, StageSpec]) -> StageSpec:
    loaded = None if spec.plugin.file is not None else spec.plugin.load()
    if not isinstance(loaded, type) or not hasattr(loaded, "issues") or not all(_sources(spec)):
        return spec  # a source that is None is told already
    errors_before = len(checker.mistakes)
    try:
        stage = construct(loaded, {**spec.params, **spec.names()})
        issues = list(stage.issues(_facts_of(spec, specs)))
    except Exception as cause:  # the plugin boundary; a value of the wrong type is told already
        if not errors_before:
            checker.error(path, f"stage '{path[-1]}' cannot be looked through: {type(cause).__name__}: {cause}")
        return spec
    for issue in issues:
        if not issue.is_warning:
            place = tuple(issue.field.split(".")) if issue.field else ()
            checker.error((*path, *place), f"stage '{path[-1]}': {issue.message}", issue.hint)
    return replace(spec, warnings=tuple(issue for issue in issues if issue.is_warning))


def _sources(spec: StageSpec) -> Iterator[Source]:
    return (source for _, source in flat(spec.inputs))


def _facts_of(spec: StageSpec, specs: Mapping[str, StageSpec]) -> StageFacts:
    name, target = next(iter(spec.configs.items()), ("", ""))
    defaults = {key: field.default for key, field in of_config(target).fields.items()} if target else {}
    args = SimpleNamespace(**{**defaults, **(spec.params.get(name) or {})})
    return StageFacts(
        args=args,
        trains_all=spec.adapter_mode != "continue" and is_full(spec.inputs.get("adapter")),
        parameters=_parameters(spec.inputs.get("model"), specs),
        loading=spec.loading,
        judges_steps=dict(_judges_steps(spec.inputs.get("rewards"))),
        memory_bytes=memory_bytes,
    )


def _judges_steps(rewards: Input) -> Iterator[tuple[str, bool]]:
    """Names of rewards; of a file, which is not imported, the best is believed."""
    for source in rewards if isinstance(rewards, tuple) else ():
        if isinstance(source, Use):
            yield source.name, source.plugin.file is not None or hasattr(source.plugin.load(), "step_scores")
        elif isinstance(source, FromStage):
            yield source.stage, hasattr(registry.load("reward", source.reward_plugin), "step_scores")


# --- how large a model is, and what there is to hold it ---------------------------------------------------------------


def _parameters(source: Source | Input, specs: Mapping[str, StageSpec]) -> int | None:
    """Of the model that a stage starts from: it has as many as the one that its maker started from."""
    seen = set()
    while isinstance(source, FromStage) and source.stage in specs and source.stage not in seen:
        seen.add(source.stage)
        made = specs[source.stage]
        if made.inputs.get("model") is None:
            return _by_config(made.params.get("config") or {})
        source = made.inputs["model"]
    return parameters_in(Path(source.path)) if isinstance(source, External) else None


def parameters_in(folder: Path) -> int | None:
    """How many numbers the weights in a model's folder are, of an adapter's folder those of its base; None unknown."""
    base = adapter_config(folder).get("base_model_name_or_path")
    if base:
        return parameters_in(Path(str(base)))
    try:
        headers = [_header(file) for file in folder.glob("*.safetensors")]
        if headers:
            return sum(
                int(math.prod(t["shape"])) for header in headers for name, t in header.items() if name[:2] != "__"
            )
        return _by_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def _header(file: Path) -> dict[str, Any]:
    """https://huggingface.co/docs/safetensors: eight bytes of length, then JSON."""
    with file.open("rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        header = json.loads(content.read(min(length, 100_000_000)))
    return header if isinstance(header, dict) else {}


def _by_config(config: Mapping[str, Any]) -> int | None:
    """Of a decoder with gated MLPs, without norms and biases: within a few percent."""
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
    """Of the first GPU, else of the machine."""
    if Path("/dev/nvidia0").exists() and shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.split()
        if told and told[0].isdigit():
            return int(told[0]) * 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
