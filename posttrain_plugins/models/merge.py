"""Adapters merged into their base, as a plain transformers model with the difference that it makes.

The base of an adapter that was trained on 4 or 8 bits is dequantized first, because the adapter mends that base's
errors and no other's (QLoRA, Dettmers et al., 2023, https://huggingface.co/papers/2305.14314). What is left is
rounding, and is measured.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import why_unmergeable
from posttrain_plugins.models.folder import TEMPLATE_OPTIONS_FILE, Task, adapter_config, adapters_in
from posttrain_plugins.models.load import (
    load_adapted,
    load_base,
    load_full,
    task_to_load,
    training_options,
)
from posttrain_plugins.models.stack import is_wrapped

__all__ = [
    "Merged",
    "check_mergeable",
    "load_plain",
    "plain_options",
    "quantize_saved",
    "random_ids",
    "save_plain",
]


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
    """Refuse what cannot be merged, before anything is loaded.

    Raises:
        InputError: says why and what to do.
    """
    for folder in adapters_in(path):
        if (reason := why_unmergeable(folder)) is not None:
            raise _refusal(name, str(adapter_config(folder)["peft_type"]), reason)


def load_plain(
    path: str, loading: Mapping[str, Any], *, dtype: str | None = None, ids: Sequence[Sequence[int]] = ()
) -> Merged:
    """Load a model, merge its adapters, take its quantization away, and measure what that changed.

    Args:
        path: a folder or Hub id, full or an adapter.
        loading: TRL `ModelConfig` fields, as the model was trained.
        dtype: of the result; by default the one it is loaded in.
        ids: token ids on which the logits are compared, one sequence at a time.

    Raises:
        InputError: an adapter that PEFT cannot merge.
    """
    import torch

    folders = adapters_in(path)
    task = task_to_load(path, loading.get("model_revision"))
    options = plain_options(path, loading, task)
    before: list[Any] = []
    if folders:
        options |= _labels(folders[-1], task)
        if ids:
            # the model as it was used, before anything is unpacked or merged; loaded a second time, since merging
            # changes the weights in place
            before = _logits(load_adapted(path, task, **options).eval(), ids)
        model = load_base(path, task, with_newest=True, dequantize=True, **options)
    else:
        model = load_full(path, task, dequantize=True, **options)
    # Nothing is quantized any more, so every adapter that PEFT can merge is merged; one that is still around a layer
    # would be lost without a word by whoever saves the weights.
    if is_wrapped(model):
        kinds = ", ".join(str(adapter_config(folder)["peft_type"]) for folder in folders)
        raise _refusal(path, kinds, "PEFT cannot merge it")
    model = model.to(getattr(torch, dtype) if dtype else model.dtype).eval()
    return Merged(model, _difference(before, _logits(model, ids)) if before else {})


def plain_options(path: str, loading: Mapping[str, Any], task: Task | None = "CausalLM") -> dict[str, Any]:
    """Return `from_pretrained`'s options for a model whose plain weights are wanted.

    An adapter's base is loaded as it was trained, also in few bits, because the adapter mends that base's errors; a
    full model as it was saved, in the revision that was asked for.
    """
    if adapter_config(path):
        return training_options(loading, task)
    revision = loading.get("model_revision")
    return {"dtype": "auto", **({"revision": revision} if revision else {})}


def save_plain(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    """Write safetensors, config, generation config, and the tokenizer with its template and the options for it.

    Args:
        model: a transformers model.
        tokenizer: the one that belongs to it.
        folder: made if needed.
        **options: of `save_pretrained`, such as `max_shard_size`.
    """
    model.save_pretrained(str(folder), **options)
    tokenizer.save_pretrained(str(folder))
    if template := getattr(tokenizer, "chat_template_kwargs", None):
        (folder / TEMPLATE_OPTIONS_FILE).write_text(json.dumps(template) + "\n", encoding="utf-8")


def quantize_saved(folder: Path, options: Mapping[str, Any], **saving: Any) -> None:
    """Replace the weights of a saved plain model by quantized ones.

    Args:
        folder: as `save_plain` wrote it.
        options: of `from_pretrained`, with `quantization_config`.
        **saving: of `save_pretrained`.
    """
    model = load_full(folder, task_to_load(folder), **options)
    # the plain shards first: with other names or another number of them, transformers would find two models
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(str(folder), **saving)


def random_ids(tokenizer: Any, count: int, seed: int) -> list[list[int]]:
    """Return `count` sequences of 32 token ids, to compare logits on where there are no prompts."""
    rng = random.Random(seed)
    return [[rng.randrange(len(tokenizer)) for _ in range(32)] for _ in range(count)]


def _refusal(name: str, kind: str, why: str) -> InputError:
    hint = "train it with lora, or load it as it is: PeftModel.from_pretrained(base, folder)"
    return InputError(f"the adapter of '{name}' cannot be merged: {kind} ({why})", hint=hint)


def _labels(folder: Path, task: Task) -> dict[str, int]:
    """Return how many labels a classifier's head has, as options of `from_pretrained`."""
    if task == "CausalLM":
        return {}
    from safetensors import safe_open

    # The base's config has the number of the base's own head, if any: only the trained head tells, and one of another
    # size could not be read into the model.
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        heads = [name for name in tensors.keys() if name.endswith("score.weight")]  # noqa: SIM118, no mapping
        return {"num_labels": int(tensors.get_slice(heads[0]).get_shape()[0]) if heads else 1}


def _logits(model: Any, ids: Sequence[Sequence[int]]) -> list[Any]:
    """Return the logits of one sequence at a time, float32 on the CPU: (T, V), or (labels,) of a classifier."""
    import torch

    with torch.inference_mode():
        # no batch: padding changes the sums of attention by a rounding, which would be counted as the merge's
        rows = (torch.tensor([list(row)], device=model.device) for row in ids)
        return [model(row).logits[0].float().cpu() for row in rows]


def _difference(before: Sequence[Any], after: Sequence[Any]) -> dict[str, float]:
    import torch

    was, now = (torch.cat([logits.flatten() for logits in of_all]) for of_all in (before, after))
    return {
        "logits_max_difference": float((now - was).abs().max()),
        "logits_relative_difference": float((now - was).norm() / was.norm()),
    }
