"""Adapters that became part of a base: merged into plain weights, and put around quantized ones. No paper.

What lies below the newest adapter of a model is part of the base to everything above, so that PEFT, which switches all
adapters of a model off at once, leaves it in force.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import ensure_registered, why_unmergeable
from posttrain_plugins.models.folder import digest
from posttrain_plugins.types import AdapterMode

__all__ = ["attach_frozen", "attached_adapters", "choose_mode", "is_wrapped"]


def choose_mode(given: AdapterMode | None, *, is_same: bool, has_adapter: bool) -> AdapterMode:
    """Decide how a training stage goes on from a model that is an adapter.

    `continue` trains that adapter on; `merge` merges it, and what lies below it, into the base first; `stack` leaves it
    in force, frozen, and trains a new one on top.

    Args:
        given: what the recipe says.
        is_same: the stage names the very adapter that the model is.
        has_adapter: the stage names one at all.
    """
    if given is not None:
        return given
    # Nobody asked: going on with the same adapter adds nothing. A stack keeps one base for all that stand on it, on
    # disk and in PPO's memory, and in few bits merged weights would have to be packed again. All parameters can be
    # trained on plain weights alone.
    if is_same:
        return "continue"
    return "stack" if has_adapter else "merge"


def attach_frozen(model: Any, adapters: Sequence[str | Path]) -> Any:
    """Make adapters part of a transformers model, one after the other, frozen; the model is changed.

    Raises:
        InputError: one is a prompt or a prefix, which is no part of any layer.
    """
    from peft import PeftConfig, PeftModel

    attached = attached_adapters(model)
    for adapter in adapters:
        ensure_registered(adapter)
        config = PeftConfig.from_pretrained(str(adapter))
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise InputError(
                f"adapter {adapter} is of type {config.peft_type.value}, which cannot be merged or lie below another",
                hint="go on training it (adapter_mode: continue), or start from its base",
            )
        # Its layers only, whatever the model is for: a task type would add PEFT's own wrapper for that task
        general: dict[str, Any] = {"task_type": None}
        if getattr(config, "ensure_weight_tying", False) and model.get_output_embeddings() is None:
            general["ensure_weight_tying"] = False  # a classifier has no LM head to tie a trained embedding to
        adapted = PeftModel.from_pretrained(model, str(adapter), config=replace(config, **general))
        # merged where that is exact: fewer matrices in every forward, and whoever saves the weights saves it too
        can_merge = getattr(model, "hf_quantizer", None) is None and why_unmergeable(adapter) is None
        model = adapted.merge_and_unload() if can_merge else _wrapped(adapted)
        model.requires_grad_(False)  # part of a base: whoever trains on top says what learns
        attached = (*attached, digest(adapter))
    model.attached_adapters = attached
    return model


def attached_adapters(model: Any) -> tuple[str, ...]:
    """Return the digests of the adapters that `attach_frozen` made part of a transformers model, from the base up."""
    return tuple(getattr(model, "attached_adapters", ()))


def is_wrapped(model: Any) -> bool:
    """Tell whether an attached adapter is around the weights, so that copying these alone (saving) loses it."""
    # `_wrapped` puts it there, and nothing else does: a module finds `_apply` in its class
    return any("_apply" in vars(module) for module in model.modules())


def _wrapped(adapted: Any) -> Any:
    """Return the base with each adapted layer computing what the adapter makes of it, without being a PEFT layer.

    So a quantized layer is still one to PEFT, which puts the next adapter around it. What trains whole (an embedding's
    tokens, a head) is put in its place: no such module is quantized.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import TrainableTokensWrapper

    adapted.eval()  # its dropout stays off: nobody reaches it any more
    # tokens that were trained alone are a difference to the embedding, which can be added to it: no embedding is packed
    wrappers = [module for module in adapted.modules() if isinstance(module, TrainableTokensWrapper)]
    for wrapper in wrappers:
        wrapper.token_adapter.merge()
    inside = {id(wrapper.token_adapter) for wrapper in wrappers}
    layers = [m for m in adapted.modules() if isinstance(m, BaseTunerLayer) and id(m) not in inside]
    # noted before `unload`, which puts each base layer back into its place and forgets the adapter
    pairs = [(layer, layer.get_base_layer()) for layer in layers]
    model = adapted.base_model.unload()
    for layer, bare in pairs:
        layer.base_layer = copy.copy(bare)  # the same parameters; its forward is the old one
        # `nn.Module.__setattr__` would make the layer a child of the module, and its weights part of the state
        object.__setattr__(bare, "forward", layer.__call__)
        object.__setattr__(bare, "_apply", partial(_move_both, bare, layer))
    return model


def _move_both(bare: Any, layer: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
    """Move a module and the layer around it, which is no child of it, to another device or dtype."""
    layer._apply(fn, *args, **kwargs)
    return type(bare)._apply(bare, fn, *args, **kwargs)
