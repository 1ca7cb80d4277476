"""Adapters merged into their base, as a plain transformers model with the difference that it makes.

The base of an adapter that was trained on 4 or 8 bits is dequantized first, because the adapter mends that base's
errors and no other's (QLoRA, Dettmers et al., 2023, https://huggingface.co/papers/2305.14314). What is left is
rounding, and is measured.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.stack import Task, adapter_config, adapters_in, is_laid_around, load_adapted, load_base

__all__ = [
    "Merged",
    "check_mergeable",
    "load_plain",
    "merged",
    "quantize_saved",
    "random_ids",
    "save_plain",
    "tokenizer_of",
]

TASKS: Mapping[str, Task] = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
}
VIRTUAL_TOKENS = "it adds virtual tokens to the prompt, not weights to the model"
OWN_MODULES = "it adds modules that are not linear in their input"
NOT_MERGEABLE = {
    "PROMPT_TUNING": VIRTUAL_TOKENS,
    "MULTITASK_PROMPT_TUNING": VIRTUAL_TOKENS,
    "P_TUNING": VIRTUAL_TOKENS,
    "PREFIX_TUNING": VIRTUAL_TOKENS,
    "CPT": VIRTUAL_TOKENS,
    "CARTRIDGE": VIRTUAL_TOKENS,
    "ADAPTION_PROMPT": OWN_MODULES,
    "BOTTLENECK": OWN_MODULES,
    "POLY": OWN_MODULES,
    "XLORA": OWN_MODULES,
}


@dataclass(frozen=True)
class Merged:
    """A plain model in memory.

    Args:
        model: without adapters and without quantization.
        metrics: `logits_max_difference`, the largest absolute one, and `logits_relative_difference`, the norm of all of
            them over the norm of the logits; empty where there was nothing to compare.
    """

    model: Any
    metrics: dict[str, float]


def check_mergeable(name: str, path: str | Path) -> None:
    """Refuses what cannot be merged, before anything is loaded.

    Raises:
        InputError: says why and what to do.
    """
    for folder in adapters_in(path):
        kind = str(adapter_config(folder)["peft_type"])
        if kind in NOT_MERGEABLE:
            raise _refusal(name, kind, NOT_MERGEABLE[kind])


def load_plain(
    path: str, options: Mapping[str, Any], *, dtype: str | None = None, ids: Sequence[Sequence[int]] = ()
) -> Merged:
    """Loads a model, merges its adapters, takes its quantization away, and measures what that changed.

    Args:
        path: a folder or Hub id, full or an adapter.
        options: of `from_pretrained`, as the model was trained.
        dtype: of the result; by default the one it is loaded in.
        ids: token ids on which the logits are compared, one sequence at a time.

    Raises:
        InputError: an adapter that PEFT cannot merge.
    """
    import torch

    folders = adapters_in(path)
    task = _task_of(path)
    options = {**options, **_labels(folders[-1], task)} if folders else options
    before: list[Any] = []
    if ids and folders:
        before = _logits(load_adapted(path, task, **options).eval(), ids)
    model = load_base(path, task, whole=True, plain=True, **options) if folders else _load_full(path, task, options)
    if is_laid_around(model):
        kinds = ", ".join(str(adapter_config(folder)["peft_type"]) for folder in folders)
        raise _refusal(path, kinds, "PEFT cannot merge it")
    model = model.to(getattr(torch, dtype) if dtype else model.dtype).eval()
    return Merged(model, _difference(before, _logits(model, ids)) if before else {})


def save_plain(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    """Writes safetensors, config, generation config, and the tokenizer with its template.

    Args:
        model: a transformers model.
        tokenizer: the one that belongs to it.
        folder: made if needed.
        **options: of `save_pretrained`, such as `max_shard_size`.
    """
    model.save_pretrained(str(folder), **options)
    tokenizer.save_pretrained(str(folder))


def quantize_saved(folder: Path, options: Mapping[str, Any], **saving: Any) -> None:
    """Replaces the weights of a saved plain model by quantized ones.

    Args:
        folder: as `save_plain` wrote it.
        options: of `from_pretrained`, with `quantization_config`.
        **saving: of `save_pretrained`.
    """
    model = _load_full(str(folder), _task_of(str(folder)), options)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(str(folder), **saving)


def merged(path: str, folder: Path, options: Mapping[str, Any]) -> Path:
    """The adapters of a model merged into its base, saved for TRL to load; made once, by one rename.

    Args:
        path: the model's folder.
        folder: where to.
        options: of `from_pretrained`, as the model was trained.

    Raises:
        InputError: an adapter that PEFT cannot merge.
    """
    if folder.is_dir():
        return folder
    scratch = folder.with_name("merged.tmp")
    save_plain(load_plain(path, options).model, tokenizer_of(path), scratch)
    scratch.rename(folder)
    return folder


def random_ids(tokenizer: Any, count: int, seed: int) -> list[list[int]]:
    """Token ids to compare logits on where there are no prompts: `count` sequences of 32."""
    chance = random.Random(seed)
    return [[chance.randrange(len(tokenizer)) for _ in range(32)] for _ in range(count)]


def tokenizer_of(path: str, chat_template: str | None = None) -> Any:
    """The tokenizer beside a model; an adapter without one has its base's."""
    from transformers import AutoTokenizer

    if (config := adapter_config(path)) and not (Path(path) / "tokenizer_config.json").is_file():
        path = str(config["base_model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return tokenizer


def _refusal(name: str, kind: str, why: str) -> InputError:
    hint = "train it with lora, or load it as it is: PeftModel.from_pretrained(base, folder)"
    return InputError(f"the adapter of '{name}' cannot be merged: {kind} ({why})", hint=hint)


def _task_of(path: str) -> Task:
    """What a model is for: an adapter says it, else what the model's `architectures` say."""
    config = adapter_config(path)
    if config:
        return TASKS.get(str(config.get("task_type")), "CausalLM")
    from transformers import AutoConfig

    architecture = str((AutoConfig.from_pretrained(path).architectures or [""])[0])
    return next((task for task in TASKS.values() if architecture.endswith(f"For{task}")), "CausalLM")


def _load_full(path: str, task: Task, options: Mapping[str, Any]) -> Any:
    import transformers

    model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(path, **options)
    is_plain = "quantization_config" not in options
    return model.dequantize() if is_plain and getattr(model, "hf_quantizer", None) is not None else model


def _labels(folder: Path, task: Task) -> dict[str, int]:
    """How many labels a classifier's head has, only the trained head tells."""
    if task == "CausalLM":
        return {}
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        heads = [name for name in tensors.keys() if name.endswith("score.weight")]  # noqa: SIM118, no mapping
        return {"num_labels": int(tensors.get_slice(heads[0]).get_shape()[0]) if heads else 1}


def _logits(model: Any, ids: Sequence[Sequence[int]]) -> list[Any]:
    """Of one sequence at a time, float32 on the CPU: (T, V), or (labels,) of a classifier."""
    import torch

    with torch.inference_mode():
        rows = (torch.tensor([list(row)], device=model.device) for row in ids)
        return [model(row).logits[0].float().cpu() for row in rows]


def _difference(before: Sequence[Any], after: Sequence[Any]) -> dict[str, float]:
    import torch

    was, now = (torch.cat([logits.flatten() for logits in of_all]) for of_all in (before, after))
    return {
        "logits_max_difference": float((now - was).abs().max()),
        "logits_relative_difference": float((now - was).norm() / was.norm()),
    }
