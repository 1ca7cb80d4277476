"""The critic of PPO and OREO: a value head, on the body that its kind says.

| kind       | body                                                          | trainable                  |
|------------|---------------------------------------------------------------|----------------------------|
| `adapter`  | the policy's own base, with a second adapter in force         | that adapter and the head  |
| `shared`   | the policy itself                                             | the policy and the head    |
| `separate` | a copy of the model the policy starts from                    | all of it, or its adapter  |

One base serves policy, critic and reference; the way to the critic's adapter is a `Route`. No paper has the kinds.

1. The head starts at zero, so the first values are 0 and the first advantages are the returns; TRL 1.12 starts from a
   classifier's random head.
2. The head computes in float32 whatever the model does.
3. The copy reads the text alone: virtual tokens before it (prefix, prompt, p-tuning) are the policy's.
"""

from __future__ import annotations

import copy
import functools
import json
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import moves_base, shares_base
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.ppo.route import Route

__all__ = ["KINDS", "Critic", "Kind", "ValueHead", "WithValues", "choose_kind"]

Kind: TypeAlias = Literal["adapter", "shared", "separate"]
KINDS: tuple[Kind, ...] = ("adapter", "shared", "separate")
ADAPTER = "critic"
NOT_FOR_THE_BODY = (
    "labels",
    "fused_lm_head",
    "num_items_in_batch",
    "output_router_logits",
    "logits_to_keep",
    "use_cache",
    "with_values",
)


class ValueHead(nn.Module):  # type: ignore[misc]
    """Hidden states to values, in float32; no `nn.Linear`, so that `target_modules: all-linear` passes it over."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, H) to (B, L)."""
        hidden = hidden.to(self.weight.device)
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)


def choose_kind(kind: Kind | None, policy_config: Any, critic_config: Any, is_quantized: bool) -> Kind:
    """The critic's kind: `adapter` where the policy is one that allows a second, `separate` else; no model is loaded.

    Args:
        kind: what the user asks for, or None.
        policy_config: the `peft.PeftConfig` of the policy, or None.
        critic_config: the critic's own, or None.
        is_quantized: are the base weights?

    Raises:
        InputError: the kind cannot be had with this policy.
    """
    is_adapter = policy_config is not None and shares_base(policy_config)
    chosen: Kind = kind or ("adapter" if is_adapter else "separate")
    if chosen == "adapter" and not is_adapter:
        found = "all parameters" if policy_config is None else policy_config.peft_type.value
        raise InputError(
            f"critic 'adapter' is a second adapter beside the policy's, but the policy trains {found}",
            hint="give the policy a LoRA adapter, or use critic='separate' or 'shared'",
        )
    if chosen == "adapter" and critic_config and critic_config.peft_type != policy_config.peft_type:
        found, expected = critic_config.peft_type.value, policy_config.peft_type.value
        raise InputError(f"the critic's adapter is {found}, expected the policy's type {expected}: they share a base")
    if chosen == "shared" and critic_config is not None:
        raise InputError("critic 'shared' is a head on the policy, it has no adapter", hint="leave critic_config out")
    if chosen == "separate" and policy_config is not None and critic_config is not None:
        raise InputError(
            "critic 'separate' copies the model, which an adapter on it does not need", hint="use critic='adapter'"
        )
    if chosen == "separate" and is_quantized:
        raise InputError("critic 'separate' trains a copy of the model, but it is quantized", hint="critic='adapter'")
    return chosen


class Critic:
    """The critic in a policy's own tree, so that one forward of the wrapped model gives log-probabilities and values.

    Args:
        model: the policy, a causal LM with TRL's fused head, or a `PeftModel` of one; it is changed in place.
        kind: one of `KINDS`, as `choose_kind` gave it.
        config: the `peft.PeftConfig` of the critic; by default the policy's, without what it trains whole.
    """

    def __init__(self, model: Any, kind: Kind, config: Any = None) -> None:
        self.kind = kind
        self.model = model
        self.is_peft = compat.is_peft(model)
        self.base = model.get_base_model() if self.is_peft else model
        self.route: Route | None = None
        if kind == "adapter":
            self._add_adapter(config)
        elif kind == "separate":
            self.base.critic_model = _copy_of_body(model, config)
        self.head = ValueHead(self.base.config.get_text_config().hidden_size).to(_device_of_last(self.base))
        self.base.value_head = self.head
        _patch_forward(self.base, self)
        self.given: Mapping[str, Any] | None = None
        if kind == "separate" and self.is_peft and compat.active_config(model).is_prompt_learning:
            model.register_forward_pre_hook(self._keep_given, with_kwargs=True)
        own = [p for name, p in model.named_parameters() if self.owns(name) and p.requires_grad]
        self.parameters: list[nn.Parameter] = own

    @property
    def body(self) -> Any:
        """The module that gives the hidden states: the policy's own, but for `separate`."""
        return self.base.critic_model if self.kind == "separate" else self.base.base_model

    def owns(self, name: str) -> bool:
        """Is the parameter of that name in the policy's tree the critic's?"""
        parts = name.split(".")
        is_adapter = self.kind == "adapter" and ADAPTER in parts
        return is_adapter or "value_head" in parts or "critic_model" in parts

    def unfreeze(self) -> None:
        """PEFT's `disable_adapter()`, `set_adapter` and `load_adapter` leave every adapter but the policy's frozen."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def values(self, given: Mapping[str, Any], seen: Tensor | None) -> Tensor:
        """V of the state before each token.

        Args:
            given: the keyword arguments of the base's forward.
            seen: (B, L, H), the hidden states of the policy's pass.

        Returns:
            (B, L - 1), with virtual tokens in L where the policy has such and they are the base's too.
        """
        if self.kind == "shared":
            assert seen is not None
            return self.head(seen[:, :-1])  # type: ignore[no-any-return]
        if self.given is not None:
            given, self.given = self.given, None
        inputs = {k: v for k, v in given.items() if k not in NOT_FOR_THE_BODY}
        if self.route is None:
            hidden = self.body(**inputs, use_cache=False).last_hidden_state
        else:
            with self.route:
                hidden = self.body(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden[:, :-1])  # type: ignore[no-any-return]

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes `critic.json`, `value_head.safetensors`, and the copy; PEFT itself writes an adapter into its folder.

        Args:
            folder: `critic/` in the policy's folder.
            state: the policy's whole state.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "critic.json").write_text(json.dumps({"kind": self.kind}) + "\n", encoding="utf-8")
        head = {name: _end_of(state, f"value_head.{name}") for name in ("weight", "bias")}
        save_file({k: v.detach().cpu().contiguous() for k, v in head.items()}, folder / "value_head.safetensors")
        if self.kind == "separate":
            body = {k.partition("critic_model.")[2]: v for k, v in state.items() if "critic_model." in k}
            self.body.save_pretrained(str(folder), state_dict=body)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, into the parameters that stand."""
        from safetensors.torch import load_file

        self.head.load_state_dict(load_file(folder / "value_head.safetensors"))
        if self.kind == "adapter":
            self.model.load_adapter(str(folder), ADAPTER, is_trainable=True)
        elif self.kind == "separate" and compat.is_peft(self.body):
            self.body.load_adapter(str(folder), "default", is_trainable=True)
        elif self.kind == "separate":
            self.body.load_state_dict(type(self.body).from_pretrained(str(folder)).state_dict())
        self.unfreeze()

    def _keep_given(self, model: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        """What the policy is given, before its virtual tokens become the base's embeddings or cache."""
        if given.get("with_values"):
            self.given = given

    def _add_adapter(self, config: Any) -> None:
        policy = self.model.peft_config[self.model.active_adapter]
        config = copy.deepcopy(config) if config is not None else _without_whole_modules(policy)
        self.model.add_adapter(ADAPTER, config)
        self.model.set_requires_grad(ADAPTER, True)
        if getattr(self.base, "is_loaded_in_4bit", False) or getattr(self.base, "is_loaded_in_8bit", False):
            for name, parameter in self.model.named_parameters():  # as TRL does with the policy's
                if self.owns(name) and "magnitude" not in name:
                    parameter.data = parameter.data.to(torch.bfloat16)
        self.route = Route(self.model, ADAPTER)


class WithValues:
    """A model whose passes also give values, kept here; GRPO calls it and takes the log-probabilities."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.values: list[Tensor] = []

    def __call__(self, **inputs: Any) -> Any:
        output = self.model(**inputs, with_values=True)
        self.values.append(output.state_values)
        return output


def _without_whole_modules(config: Any) -> Any:
    """The policy's config for the critic: its own low-rank weights, but no copies of whole modules or tokens."""
    changes: dict[str, Any] = {
        name: None for name in ("modules_to_save", "trainable_token_indices") if getattr(config, name, None)
    }
    if moves_base(vars(config)):
        changes["init_lora_weights"] = True  # the base has given to the policy's what it should
    return replace(copy.deepcopy(config), **changes, inference_mode=False)


def _copy_of_body(model: Any, config: Any) -> Any:
    """The model without its LM head, all of it trainable, or with an adapter of its own."""
    with compat.gathered_parameters(model):
        if compat.is_peft(model) and compat.active_config(model).is_prompt_learning:
            body = copy.deepcopy(model.get_base_model()).base_model
        elif compat.is_peft(model):
            body = copy.deepcopy(model).merge_and_unload().base_model
        else:
            body = copy.deepcopy(model.base_model)
    if config is None:
        return body.requires_grad_(True)
    from peft import get_peft_model

    return get_peft_model(body, replace(copy.deepcopy(config), task_type="FEATURE_EXTRACTION"))


def _device_of_last(base: Any) -> torch.device:
    """Where the hidden states end: the device of the LM head, which may be another than the first layer's."""
    return base.get_output_embeddings().weight.device  # type: ignore[no-any-return]


def _end_of(state: Mapping[str, Tensor], end: str) -> Tensor:
    return next(value for key, value in state.items() if key.endswith(end))


def _patch_forward(base: Any, critic: Critic) -> None:
    """Lets `model(..., with_values=True)` give `state_values` too; without it nothing changes, generation neither."""
    inner = base.forward
    output_class = compat.value_output_class()

    @functools.wraps(type(base).forward)  # `generate` checks its arguments against this signature
    def forward(self: Any, *args: Any, with_values: bool = False, **kwargs: Any) -> Any:
        if not with_values:
            return inner(*args, **kwargs)
        with _watching(self.base_model if critic.kind == "shared" else None) as seen:
            output = inner(*args, **kwargs)
        values = critic.values(kwargs, seen[-1] if seen else None)
        return output_class(**output, state_values=values)

    base.forward = types.MethodType(forward, base)


@contextmanager
def _watching(body: Any) -> Iterator[list[Tensor]]:
    """The hidden states that a body gives within."""
    seen: list[Tensor] = []
    if body is None:
        yield seen
        return
    handle = body.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    try:
        yield seen
    finally:
        handle.remove()
