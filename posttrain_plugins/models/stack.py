"""A stack of adapters: a model folder that holds the newest adapter, and in `stack/` those that lie below it.

What lies below is part of the base to everything above: merged into plain weights, and laid around quantized ones, so
that PEFT, which switches all adapters of a model off at once, leaves it in force. Anything that loads a model folder
loads it through here. No paper.

```
model/                      the newest adapter: adapter_config.json names the base
├── adapter_model.safetensors
└── stack/0, stack/1 ...    the adapters below, from the base up
```
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import abilities, ensure_registered
from posttrain_plugins.types import AdapterMode

__all__ = [
    "SEVERAL",
    "TASK_TYPES",
    "Task",
    "adapter_config",
    "adapters_in",
    "choose_mode",
    "copy_below",
    "digest",
    "is_laid_around",
    "laid_in",
    "lay",
    "load_adapted",
    "load_base",
    "pick",
    "several_in",
    "task_of",
]

ADAPTER_CONFIG = "adapter_config.json"
BELOW = "stack"
SEVERAL = "adapters.json"

Task: TypeAlias = Literal["CausalLM", "SequenceClassification", "TokenClassification"]


TASK_TYPES: dict[str, Task] = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
}
"""PEFT's task types, and what transformers calls the models."""


def choose_mode(given: AdapterMode | None, *, is_same: bool, has_adapter: bool, is_quantized: bool) -> AdapterMode:
    """How a training stage goes on from a model that is an adapter.

    `continue` trains that adapter on; `merge` merges it, and what lies below it, into the base first; `stack` leaves it
    in force, frozen, and trains a new one on top.

    Args:
        given: what the recipe says.
        is_same: the stage names the very adapter that the model is.
        has_adapter: the stage names one at all.
        is_quantized: merged weights would be quantized again, and be others than those that were trained.
    """
    if given is not None:
        return given
    if is_same:
        return "continue"
    return "stack" if has_adapter and is_quantized else "merge"


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """The `adapter_config.json` of a folder; empty for a full model."""
    file = Path(folder) / ADAPTER_CONFIG
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def adapters_in(folder: str | Path) -> list[Path]:
    """The adapters that a model folder stands for, from the base up; none for a full model or a Hub id."""
    path = Path(folder)
    if not (path / ADAPTER_CONFIG).is_file():
        return []
    below = (path / BELOW).iterdir() if (path / BELOW).is_dir() else ()
    return [*sorted((one for one in below if one.name.isdigit()), key=lambda one: int(one.name)), path]


def task_of(folder: str | Path) -> Task | None:
    """What a model folder was trained as, by its adapter's task type or its architecture; None where neither tells."""
    adapter = adapter_config(folder)
    if adapter:
        return TASK_TYPES.get(str(adapter.get("task_type")))
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = str((config.get("architectures") or [""])[0])
    return next((task for task in TASK_TYPES.values() if name.endswith(f"For{task}")), None)


def several_in(folder: str | Path) -> list[str]:
    """The names of the adapters of a model that holds several over one base, a folder each; empty for any other."""
    file = Path(folder) / SEVERAL
    return list(json.loads(file.read_text(encoding="utf-8"))["adapters"]) if file.is_file() else []


def pick(model: str, folder: str | Path, adapter: str) -> str:
    """The folder of one adapter of a model that holds several; the model's own where there is nothing to pick.

    Args:
        model: its name, for errors.
        folder: of the model.
        adapter: the name behind the `+`; empty for none.

    Raises:
        InputError: no such adapter, or none is named and there are several; the hint has the names.
    """
    names = several_in(folder)
    if adapter in names:
        return str(Path(folder) / adapter)
    known = f"there are {', '.join(f'{model}+{name}' for name in names)}"
    if names:
        found = f"no adapter '{adapter}'" if adapter else "several adapters, expected one of them"
        raise InputError(f"model '{model}' has {found}", hint=known)
    if adapter:
        raise InputError(f"model '{model}' has no adapter '{adapter}': it is one model", hint=f"name it: {model}")
    return str(folder)


def copy_below(adapters: Sequence[Path], folder: Path) -> None:
    """Puts adapters, from the base up, below the one that `folder` holds; their own `stack/` stays where it is."""
    shutil.rmtree(folder / BELOW, ignore_errors=True)
    for number, adapter in enumerate(adapters):
        target = folder / BELOW / str(number)
        target.mkdir(parents=True)
        for file in sorted(adapter.glob("adapter_*")):
            shutil.copy2(file, target / file.name)


def load_adapted(folder: str | Path, task: Task = "CausalLM", *, is_trainable: bool = False, **options: Any) -> Any:
    """The `PeftModel` of an adapter folder, over its base and all that lies between.

    Args:
        folder: with `adapter_config.json`.
        task: what the model is loaded as.
        is_trainable: does its newest adapter learn?
        **options: of transformers' `from_pretrained`, for the base.

    Raises:
        InputError: an adapter below the newest cannot be part of a base.
    """
    import peft

    ensure_registered(folder)
    model = load_base(folder, task, **options)
    return getattr(peft, f"PeftModelFor{task}").from_pretrained(model, str(folder), is_trainable=is_trainable)


def load_base(
    folder: str | Path, task: Task = "CausalLM", *, whole: bool = False, plain: bool = False, **options: Any
) -> Any:
    """What the newest adapter of a folder is on: a transformers model with the adapters below in force, frozen.

    Args:
        folder: with `adapter_config.json`.
        task: what the model is loaded as.
        whole: let the newest adapter be in force too, as one more below the next.
        plain: dequantize a quantized base before the first adapter.
        **options: of transformers' `from_pretrained`.
    """
    import transformers

    base = str(adapter_config(folder)["base_model_name_or_path"])
    model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(base, **options)
    if plain and getattr(model, "hf_quantizer", None) is not None:
        model = model.dequantize()
    _make_room(model, folder)
    adapters = adapters_in(folder)
    return lay(model, adapters if whole else adapters[:-1])


def lay(model: Any, adapters: Sequence[str | Path]) -> Any:
    """Makes adapters part of a transformers model, one after the other, frozen; the model is changed.

    Raises:
        InputError: one is a prompt or a prefix, which is no part of any layer.
    """
    from peft import PeftConfig, PeftModel

    laid = laid_in(model)
    for adapter in adapters:
        ensure_registered(adapter)
        config = PeftConfig.from_pretrained(str(adapter))
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise InputError(
                f"adapter {adapter} is of type {config.peft_type.value}, which cannot be merged or lie below another",
                hint="go on training it (adapter_mode: continue), or start from its base",
            )
        general = replace(
            config, task_type=None, **_untied(model, config)
        )  # its layers only, whatever the model is for
        adapted = PeftModel.from_pretrained(model, str(adapter), config=general)
        is_plain = getattr(model, "hf_quantizer", None) is None and _can_merge(config)
        model = adapted.merge_and_unload() if is_plain else _laid_around(adapted)
        model.requires_grad_(False)
        laid = (*laid, digest(adapter))
    model.laid_adapters = laid
    return model


def with_plain_head(quantization: Any) -> Any:
    """A quantization that leaves a classifier's head alone: it is new, or trained whole, and transformers packs it."""
    if quantization is None:
        return None
    kept = copy.deepcopy(quantization)
    kept.llm_int8_skip_modules = [*(kept.llm_int8_skip_modules or []), "score"]  # of 4-bit configs too
    return kept


def _untied(model: Any, config: Any) -> dict[str, bool]:
    """A classifier has no LM head that an adapter's trained embedding could be tied to."""
    is_tied = getattr(config, "ensure_weight_tying", False)
    return {"ensure_weight_tying": False} if is_tied and model.get_output_embeddings() is None else {}


def laid_in(model: Any) -> tuple[str, ...]:
    """The digests of the adapters that `lay` made part of a transformers model, from the base up."""
    return tuple(getattr(model, "laid_adapters", ()))


def is_laid_around(model: Any) -> bool:
    """Is one of them beside the weights, where who copies the weights alone (vLLM, a saved model) loses it?"""
    return any("_apply" in vars(module) for module in model.modules())


def digest(adapter: str | Path) -> str:
    """Of an adapter's weights, the same wherever its folder lies."""
    found = hashlib.sha256()
    for file in sorted(Path(adapter).glob("adapter_model*")):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _can_merge(config: Any) -> bool:
    """As the source of its type says; a type that does not tell is tried."""
    found = abilities(f"{type(config).__module__}:{type(config).__name__}")
    return found is None or found.merges


def _laid_around(adapted: Any) -> Any:
    """The base with each adapted layer computing what the adapter makes of it, without being a PEFT layer.

    So a quantized layer is still one to PEFT, which puts the next adapter around it. What trains whole (an embedding's
    tokens, a head) is put in its place: no such module is quantized.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import TrainableTokensWrapper

    adapted.eval()  # its dropout stays off: nobody reaches it any more
    wrappers = [module for module in adapted.modules() if isinstance(module, TrainableTokensWrapper)]
    for wrapper in wrappers:
        wrapper.token_adapter.merge()
    inside = {id(wrapper.token_adapter) for wrapper in wrappers}
    layers = [m for m in adapted.modules() if isinstance(m, BaseTunerLayer) and id(m) not in inside]
    pairs = [(layer, layer.get_base_layer()) for layer in layers]
    model = adapted.base_model.unload()
    for layer, bare in pairs:
        layer.base_layer = copy.copy(bare)  # the same parameters; its forward is the old one
        _compute_by(bare, layer)
    return model


def _compute_by(bare: Any, layer: Any) -> None:
    """Lets a module's forward be that of the layer around it, which moves with it and is no child of it."""
    object.__setattr__(bare, "forward", layer.__call__)
    object.__setattr__(bare, "_apply", partial(_move_both, bare, layer))


def _move_both(bare: Any, layer: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
    layer._apply(fn, *args, **kwargs)
    return type(bare)._apply(bare, fn, *args, **kwargs)


def _make_room(model: Any, folder: str | Path) -> None:
    """As PEFT's own loader: a tokenizer with more tokens than the base has rows was given them in training."""
    if not (Path(folder) / "tokenizer_config.json").is_file():
        return
    from transformers import AutoTokenizer

    tokens = len(AutoTokenizer.from_pretrained(str(folder)))
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens)
