"""Where a training stage starts: model, adapter, quantization, chat template, as TRL's trainers take them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.types import ModelArtifact, StageContext

__all__ = ["Start", "has_accelerator", "loading_kwargs", "start"]


@dataclass
class Start:
    """Where a stage starts: what TRL's trainers are given.

    Args:
        model: a folder or Hub id, so that TRL's own seeding precedes random heads; a `PeftModel` to go on training.
        kwargs: `peft_config`, `quantization_config` and `processing_class` where there is one to give.
        model_init_kwargs: for TRL's config.
        handoff: what the next stage should know of the adapter.
    """

    model: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    model_init_kwargs: dict[str, Any] = field(default_factory=dict)
    handoff: dict[str, Any] = field(default_factory=dict)


def start(context: StageContext, task_type: str = "CAUSAL_LM", artifact: ModelArtifact | None = None) -> Start:
    """Resolves model (or the `artifact` given), adapter, quantization and chat template of a training stage.

    A model that is an adapter already is trained on when the stage names the very same adapter; otherwise it is merged
    into its base first, because a new adapter on an unmerged one makes the reference model a guess.
    """
    artifact = artifact or context.inputs["model"]
    assert artifact is not None
    adapter = context.inputs.get("adapter")
    peft_config = _for_task(adapter.config, task_type) if adapter else None
    begin = Start(artifact.path, model_init_kwargs=_init_kwargs(artifact.loading))
    quantization = _quantization(artifact.loading)
    if quantization is not None:
        if peft_config is None:
            raise InputError(
                f"stage '{context.stage}' trains all parameters of a quantized model",
                hint="give it an adapter: {use: lora}",
            )
        begin.kwargs["quantization_config"] = quantization
    if adapter is not None and peft_config is not None:
        begin.handoff["adapter"] = {"name": adapter.name, "config": _digest(peft_config)}
        begin.kwargs["peft_config"] = peft_config
    if artifact.is_adapter:
        _start_from_adapter(begin, artifact, context)
    template = context.inputs.get("chat_template")
    if template is not None:
        begin.kwargs["processing_class"] = _with_template(begin.model, artifact, template)
    return begin


def loading_kwargs(loading: Mapping[str, Any]) -> dict[str, Any]:
    """What `from_pretrained` takes for TRL `ModelConfig`'s fields: dtype, attention, revision, quantization."""
    quantization = _quantization(loading)
    return {**_init_kwargs(loading), **({} if quantization is None else {"quantization_config": quantization})}


def has_accelerator() -> bool:
    """Is there a GPU or the like?"""
    import torch

    return bool(torch.accelerator.is_available())


def _init_kwargs(loading: Mapping[str, Any]) -> dict[str, Any]:
    """TRL `ModelConfig`'s names -> `from_pretrained`'s, as TRL's own scripts do."""
    names = {"dtype": "dtype", "attn_implementation": "attn_implementation", "model_revision": "revision"}
    return {names[name]: value for name, value in loading.items() if name in names}


def _quantization(loading: Mapping[str, Any]) -> Any:
    if not (loading.get("load_in_4bit") or loading.get("load_in_8bit")):
        return None
    from trl import ModelConfig, get_quantization_config

    try:
        return get_quantization_config(ModelConfig(**loading))
    except (ImportError, ValueError) as cause:
        raise InputError(
            f"the model cannot be quantized: {cause}", hint="pip install 'posttrain-plugins[quant]'"
        ) from cause


def _for_task(peft_config: Any, task_type: str) -> Any:
    """The adapter's config for the task; a classifier of sequences or tokens also trains its `score` head."""
    if peft_config is None or task_type == "CAUSAL_LM":
        return peft_config
    keep = list(getattr(peft_config, "modules_to_save", None) or [])
    changes: dict[str, Any] = {"task_type": task_type}
    if hasattr(peft_config, "modules_to_save"):
        changes["modules_to_save"] = [*keep, "score"] if "score" not in keep else keep
    if task_type == "TOKEN_CLS" and getattr(peft_config, "target_modules", None) == "all-linear":
        changes["exclude_modules"] = ["score"]  # PEFT would wrap the head too
    return replace(peft_config, **changes)


def _digest(peft_config: Any) -> str:
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in peft_config.to_dict().items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _start_from_adapter(begin: Start, artifact: ModelArtifact, context: StageContext) -> None:
    same = begin.handoff.get("adapter", {}).get("config")
    if same is not None and artifact.handoff.get("adapter", {}).get("config") == same:
        context.reporter.note(f"goes on training the adapter of '{artifact.name}'")
        begin.model = _trainable_adapter(artifact, begin)
        begin.kwargs["processing_class"] = _tokenizer(artifact.path)  # TRL would take the base's, and its template
        begin.kwargs.pop("peft_config")
        begin.kwargs.pop("quantization_config", None)
        begin.model_init_kwargs = {}
        return
    context.reporter.note(f"merges the adapter of '{artifact.name}' into its base first")
    begin.model = str(_merged(artifact, context.folder / "merged"))


def _trainable_adapter(artifact: ModelArtifact, begin: Start) -> Any:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    base = PeftConfig.from_pretrained(artifact.path).base_model_name_or_path
    loading = {"dtype": "float32", **begin.model_init_kwargs}
    if "quantization_config" in begin.kwargs:
        loading["quantization_config"] = begin.kwargs["quantization_config"]
    model = AutoModelForCausalLM.from_pretrained(base, **loading)
    return PeftModel.from_pretrained(model, artifact.path, is_trainable=True)


def _merged(artifact: ModelArtifact, folder: Path) -> Path:
    """The adapter merged into its (unquantized) base, saved for TRL to load; made once, by one rename."""
    if folder.is_dir():
        return folder
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    scratch = folder.with_name("merged.tmp")
    loading = {"dtype": "float32", **_init_kwargs(artifact.loading)}
    model = AutoPeftModelForCausalLM.from_pretrained(artifact.path, **loading).merge_and_unload()
    model.save_pretrained(str(scratch))
    AutoTokenizer.from_pretrained(artifact.path).save_pretrained(str(scratch))
    scratch.rename(folder)
    return folder


def _tokenizer(path: str) -> Any:
    """As TRL's trainers load it where prompts are padded and cut on the left; the others pad and cut by themselves."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, padding_side="left", truncation_side="left")


def _with_template(model: Any, artifact: ModelArtifact, template: Any) -> Any:
    tokenizer = _tokenizer(model if isinstance(model, str) else artifact.path)
    tokenizer.chat_template = template.read_text(encoding="utf-8") if isinstance(template, Path) else str(template)
    return tokenizer
