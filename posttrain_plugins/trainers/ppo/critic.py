"""The critic of PPO and OREO: a value head, on the body that its kind says.

| kind       | body                                                          | trainable                  |
|------------|---------------------------------------------------------------|----------------------------|
| `adapter`  | the policy's own base, with a second adapter in force         | that adapter and the head  |
| `shared`   | the policy itself                                             | the policy and the head    |
| `separate` | a copy of the model the policy starts from                    | all of it, or its adapter  |

One base serves policy, critic and reference; the way to the critic's adapter is a `Route`. No paper has the kinds.

1. The head starts at zero, so the first values are 0 and the first advantages are the returns; TRL 1.12 starts from a
   classifier's random head. Or head and body start from what has learned values before (`critic_start.py`).
2. The head computes in float32 whatever the model does.
3. The copy reads the text alone: virtual tokens before it (prefix, prompt, p-tuning) are the policy's.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
import types
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import moves_base
from posttrain_plugins.models.critic_folder import SAYS, said_of_critic
from posttrain_plugins.models.folder import copy_below
from posttrain_plugins.models.value_form import ValueForm
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.ppo.critic_start import HEADS, SavedValues
from posttrain_plugins.trainers.ppo.return_scale import RunningReturns
from posttrain_plugins.trainers.ppo.route import Route
from posttrain_plugins.trainers.ppo.rules import CriticKind
from posttrain_plugins.trainers.ppo.shared_reward import adapters_below

__all__ = ["Critic", "ValueHead", "WithCritic", "WithValues"]

ADAPTER = "critic"
WRAPPED = "_checkpoint_wrapped_module."
"""What torch's own activation checkpointing puts into names."""
NOT_FOR_THE_BODY = (
    "labels",
    "shift_labels",
    "fused_lm_head",
    "num_items_in_batch",
    "output_router_logits",
    "logits_to_keep",
    "use_cache",
    "with_values",
)
"""Arguments of a causal LM's forward that the model below its LM head does not take."""


class ValueHead(nn.Module):  # type: ignore[misc]
    """Maps hidden states to values, in float32, `shift` plus `scale` times what the weights give.

    Args:
        hidden_size: H.
        form: how its K logits are read; None where the one is the value.
    """

    def __init__(self, hidden_size: int, form: ValueForm | None = None) -> None:
        super().__init__()
        self.form = form
        self.scale, self.shift = 1.0, 0.0
        labels = 1 if form is None else form.num_labels
        # parameters of its own and no `nn.Linear`: `target_modules: all-linear` would put an adapter around that
        self.weight = nn.Parameter(torch.zeros(labels, hidden_size))
        self.bias = nn.Parameter(torch.zeros(labels))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, L, H) to (B, L)."""
        hidden = hidden.to(self.weight.device)
        with torch.autocast(hidden.device.type, enabled=False):  # returns need more digits than bfloat16 has
            logits = nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())
            if self.form is not None:
                return self.form.values(logits)
            values = logits.squeeze(-1)
        # not times 1: it would be one more node of the graph for each critic that is not normalised
        return values if (self.scale, self.shift) == (1.0, 0.0) else values * self.scale + self.shift

    def normalized(self, values: Tensor) -> Tensor:
        """Map values or returns to the units in which the weights learn."""
        return (values - self.shift) / self.scale

    def rescale(self, scale: float, shift: float) -> None:
        """Let the weights learn in other units; no value changes (1602.07714, proposition 1)."""
        if self.form is None:  # a form has its range, and values that no unit moves
            with torch.no_grad():
                self.bias.mul_(self.scale).add_(self.shift - shift).div_(scale)
                self.weight.mul_(self.scale / scale)
        self.scale, self.shift = scale, shift


class Critic:
    """The critic in a policy's own tree, so that one forward of the wrapped model gives log-probabilities and values.

    Args:
        model: the policy, a causal LM with TRL's fused head, or a `PeftModel` of one; it is changed in place.
        kind: as `rules.choose_kind` gave it.
        config: the `peft.PeftConfig` of the critic; by default the policy's, without what it trains whole.
        start: the values that it starts with; None starts at 0.
        normalizes: learns returns in units of their running deviation from their running mean.
    """

    def __init__(
        self,
        model: Any,
        kind: CriticKind,
        config: Any = None,
        *,
        start: SavedValues | None = None,
        normalizes: bool = False,
    ) -> None:
        self.returns = RunningReturns() if normalizes else None
        self.kind = kind
        self.model = model
        self.is_peft = compat.is_peft(model)
        self.base = model.get_base_model() if self.is_peft else model
        self.route: Route | None = None
        self.below: list[Path] = []  # adapters that the critic's is on, and the policy's is not
        self.adapters: tuple[str, ...] = (ADAPTER,)
        if kind == "adapter":
            self._add_adapter(config, start)
        elif kind == "separate" and start is not None:
            body = start.whole[0].to(device=model.device, dtype=model.dtype)
            self.base.critic_model = body.requires_grad_(True)
        elif kind == "separate":
            self.base.critic_model = _copy_of_body(model, config)
        # Head and copy are submodules of the policy, so that one optimizer, one DDP wrapper and one DeepSpeed engine
        # hold all that learns. The head is where the hidden states end: with the layers on several devices, beside the
        # LM head and not beside the first layer.
        size = (self.base if start is None else self.body).config.get_text_config().hidden_size
        self.head = ValueHead(size, None if start is None else start.form)
        if start is not None:
            self._start_head(start)
        self.head.to(self.base.get_output_embeddings().weight.device)
        self.base.value_head = self.head
        _patch_forward(self.base, self)
        self.given: Mapping[str, Any] | None = None
        if kind == "separate" and self.is_peft and compat.active_config(model).is_prompt_learning:
            # PEFT turns the text into embeddings behind virtual tokens, or adds a cache, before the base is called:
            # the copy, which has none of them, is given what the policy was given
            model.register_forward_pre_hook(self._keep_given, with_kwargs=True)
        self.names = tuple(n for n, p in model.named_parameters() if self.owns(n) and p.requires_grad)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns of the critic, by name and asked for each time: FSDP2 puts other objects in their place."""
        named = {name.replace(WRAPPED, ""): p for name, p in self.model.named_parameters()}
        return [named[name] for name in self.names]

    @property
    def body(self) -> Any:
        """The module that gives the hidden states: the policy's own, but for `separate`."""
        return self.base.critic_model if self.kind == "separate" else self.base.base_model

    def owns(self, name: str) -> bool:
        """Tell whether the parameter of that name in the policy's tree is the critic's."""
        parts = name.split(".")
        is_adapter = self.kind == "adapter" and not set(self.adapters).isdisjoint(parts)
        return is_adapter or "value_head" in parts or "critic_model" in parts

    def unfreeze(self) -> None:
        """Let the critic's parameters learn again.

        PEFT's `disable_adapter()`, `set_adapter` and `load_adapter` leave every adapter but the policy's frozen.
        """
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def count_returns(self, mean: float, square: float) -> None:
        """Count the returns of one more rollout, by their mean and mean square; no value changes but a head's at 0."""
        assert self.returns is not None
        is_new = self.returns.weight == 0.0 and not bool(self.head.weight.any())
        self.returns.add(mean, square)
        if is_new:  # it has said nothing yet that is worth keeping, and begins with the mean
            self.head.scale, self.head.shift = self.returns.deviation, self.returns.mean
        else:
            self.head.rescale(self.returns.deviation, self.returns.mean)

    def values(self, given: Mapping[str, Any], hidden: Tensor | None) -> Tensor:
        """Return V of the state before each token.

        Args:
            given: the keyword arguments of the base's forward.
            hidden: (B, L, H), the hidden states of the policy's pass, for a critic that shares them.

        Returns:
            (B, L - 1), with virtual tokens in L where the policy has such and they are the base's too.
        """
        if hidden is None:
            if self.given is not None:
                given, self.given = self.given, None
            inputs = {k: v for k, v in given.items() if k not in NOT_FOR_THE_BODY}
            with self.route or nullcontext():
                hidden = self.body(**inputs, use_cache=False).last_hidden_state  # (B, L, H)
        # token t is written in the state at t - 1, but where the states are already those before each token
        return self.head(hidden if given.get("shift_labels") is not None else hidden[:, :-1])  # type: ignore[no-any-return]

    def save(self, folder: Path, state: Mapping[str, Tensor], template_kwargs: Mapping[str, Any] | None = None) -> None:
        """Write `critic.json`, `value_head.safetensors`, and the copy; PEFT itself writes an adapter into its folder.

        Args:
            folder: `critic/` in the policy's folder.
            state: the policy's whole state.
            template_kwargs: options of the chat template that prompts were rendered with, as whoever asks it has to.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        says: dict[str, Any] = {"kind": self.kind}
        says |= {"chat_template_kwargs": template_kwargs} if template_kwargs else {}
        says |= {"form": asdict(self.head.form)} if self.head.form is not None else {}
        says |= {"returns": self.returns.as_dict()} if self.returns is not None else {}
        (folder / SAYS).write_text(json.dumps(says) + "\n", encoding="utf-8")
        # out of the state, not out of the modules: under ZeRO-3 those hold but a shard
        ends = {f"value_head.{name}": name for name in ("weight", "bias")}
        head = {name: next(v for key, v in state.items() if key.endswith(end)) for end, name in ends.items()}
        if self.returns is not None and self.head.form is None:
            head |= {"scale": torch.tensor(self.head.scale), "shift": torch.tensor(self.head.shift)}
        save_file({k: v.detach().cpu().contiguous() for k, v in head.items()}, folder / "value_head.safetensors")
        copy_below(self.below, folder)
        if self.kind == "separate":
            body = {k.partition("critic_model.")[2]: v for k, v in state.items() if "critic_model." in k}
            self.body.save_pretrained(str(folder), state_dict=body)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, into the parameters that stand."""
        from safetensors.torch import load_file

        if compat.is_sharded(self.model):
            self._load_into_shards(folder)
            return
        saved = load_file(folder / "value_head.safetensors")
        self.head.load_state_dict({name: saved[name] for name in ("weight", "bias")})
        if self.returns is not None:
            self.returns = RunningReturns(**said_of_critic(folder)["returns"])
            # out of the moments, which are float64, and not out of the file beside them, for whoever reads values
            self.head.scale, self.head.shift = self.returns.deviation, self.returns.mean
        if self.kind == "adapter":
            self.model.load_adapter(str(folder), ADAPTER, is_trainable=True)
        elif self.kind == "separate" and compat.is_peft(self.body):
            self.body.load_adapter(str(folder), "default", is_trainable=True)
        elif self.kind == "separate":
            self.body.load_state_dict(type(self.body).from_pretrained(str(folder)).state_dict())
        self.unfreeze()

    def _load_into_shards(self, folder: Path) -> None:
        """Do as `load` where FSDP2 has parameters in pieces, into which neither torch nor PEFT loads whole ones."""
        from safetensors.torch import load_file

        saved = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            ends = name.replace(f".{ADAPTER}.", ".").replace(".default.", ".").partition("critic_model.")
            key = ends[2] or (name.rpartition(".")[2] if "value_head" in name else ends[0])
            compat.fill_shard(parameter, saved[key])
        self.unfreeze()

    def _keep_given(self, model: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        if given.get("with_values"):
            self.given = given

    def _start_head(self, start: SavedValues) -> None:
        saved = start.head
        self.head.load_state_dict({"bias": torch.zeros(len(saved["weight"])), **saved})
        if self.returns is not None and start.returns is not None:
            self.returns = RunningReturns(**start.returns)
            self.head.rescale(self.returns.deviation, self.returns.mean)

    def _add_adapter(self, config: Any, start: SavedValues | None) -> None:
        """Add the critic's adapter beside the policy's, or the one that it starts from, with what that one is on."""
        if start is not None:
            config = start.config
            # frozen and by their own names: what the policy learns from here on is not what the values were learned on
            self.below = start.adapters[len(adapters_below(self.model)) : -1]
            self.adapters = (*(f"{ADAPTER}_below_{i}" for i in range(len(self.below))), ADAPTER)
            for name, folder in zip(self.adapters, self.below, strict=False):
                self.model.load_adapter(str(folder), name, is_trainable=False)
        if config is None:
            config = self.model.peft_config[self.model.active_adapter]
            # its own low-rank weights, but no copies of whole modules or tokens, which the policy has already
            copies = ("modules_to_save", "trainable_token_indices")
            changes: dict[str, Any] = {name: None for name in copies if getattr(config, name, None)}
            if moves_base(vars(config)):
                changes["init_lora_weights"] = True  # the base has given to the policy's what it should
            config = replace(copy.deepcopy(config), **changes, inference_mode=False)
        self.model.add_adapter(ADAPTER, copy.deepcopy(config))
        self.model.set_requires_grad(ADAPTER, True)  # PEFT adds a second adapter frozen
        if start is not None:
            _load_weights(self.model, start.adapters[-1])
        if compat.is_quantized(self.base):
            # as TRL did with the policy's before this was there; the steps of DoRA's magnitudes may be smaller than
            # bfloat16 can hold, and would be lost (TRL #7268)
            for name, parameter in self.model.named_parameters():
                if self.owns(name) and "magnitude" not in name:
                    parameter.data = parameter.data.to(torch.bfloat16)
        self.route = Route(self.model, *self.adapters)


class WithCritic:
    """Goes before one of TRL's trainers, `class PPOTrainer(WithCritic, GRPOTrainer)`: optimizes, saves, loads a critic.

    `critic` is set after the trainer's own start, and is None where there is none; `args` has `critic_learning_rate`.
    What is saved stands in `critic/` beside the policy.
    """

    critic: Critic | None
    args: Any
    model: Any
    state: Any

    def create_optimizer(self, model: Any = None) -> Any:
        """Do as `transformers.Trainer` does; the critic's parameters have groups with their own learning rate."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        if self.critic is None or self.args.critic_learning_rate is None:
            return optimizer
        if not hasattr(optimizer, "param_groups"):
            hint = "take the optimizer out of the DeepSpeed config, or critic_learning_rate out of args"
            raise InputError("critic_learning_rate needs an optimizer of the trainer's own", hint=hint)
        own = {id(p) for p in self.critic.parameters}
        for group in list(optimizer.param_groups):  # with weight decay, and without
            critics = [p for p in group["params"] if id(p) in own]
            if critics:
                group["params"] = [p for p in group["params"] if id(p) not in own]
                optimizer.add_param_group({**group, "params": critics, "lr": self.args.critic_learning_rate})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.critic is None:
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        elif self.args.should_save:
            state = self.model.state_dict() if state_dict is None else state_dict
            # a full model's file would hold keys that no `from_pretrained` expects; PEFT picks its adapters' by itself
            policy = {k: v for k, v in state.items() if self.critic.is_peft or not self.critic.owns(k)}
            super()._save(output_dir, policy)  # type: ignore[misc]
            for name in self.critic.adapters[:-1]:  # PEFT saves what is not ours to change; `critic/` has a copy
                shutil.rmtree(Path(output_dir or self.args.output_dir) / name, ignore_errors=True)
            template_kwargs = getattr(self.args, "chat_template_kwargs", None)  # of a trainer that samples
            self.critic.save(Path(output_dir or self.args.output_dir) / "critic", state, template_kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if self.critic is not None:
            self.critic.load(Path(resume_from_checkpoint) / "critic")

    def _load_best_model(self) -> None:
        super()._load_best_model()  # type: ignore[misc]
        if self.critic is not None and self.state.best_model_checkpoint is not None:
            self.critic.load(Path(self.state.best_model_checkpoint) / "critic")


class WithValues:
    """A model whose passes also give values, kept here; GRPO calls it and takes the log-probabilities."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.values: list[Tensor] = []

    def __call__(self, **inputs: Any) -> Any:
        output = self.model(**inputs, with_values=True)
        self.values.append(output.state_values)
        return output


def _load_weights(model: Any, folder: Path) -> None:
    """Give the critic's adapter the weights of a saved one.

    Raises:
        InputError: it has weights for what the policy's base has not.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    saved = load_peft_weights(str(folder), device="cpu")
    weights = {name: tensor for name, tensor in saved.items() if set(HEADS).isdisjoint(name.split("."))}
    # what PEFT finds no place for it only lists
    lost = set_peft_model_state_dict(model, weights, adapter_name=ADAPTER).unexpected_keys
    if lost:
        found = f"critic.from: {folder} has weights for what the policy's base has not: {sorted(lost)[0]}"
        raise InputError(found, hint="train it from the policy's own base, or critic: {kind: separate, from: ...}")


def _copy_of_body(model: Any, config: Any) -> Any:
    """Copy the model without its LM head: all of it trainable, or with an adapter of its own."""
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


def _patch_forward(base: Any, critic: Critic) -> None:
    """Let `model(..., with_values=True)` give `state_values` too; without it nothing changes, generation neither.

    In this way each loss makes one call of the wrapped model. DDP refuses two of them, one for the policy and one for
    the critic, before one backward: "mark a variable ready only once".
    """
    inner = base.forward
    output_class = compat.value_output_class()

    @functools.wraps(type(base).forward)  # `generate` checks its arguments against this signature
    def forward(self: Any, *args: Any, with_values: bool = False, **kwargs: Any) -> Any:
        if not with_values:
            return inner(*args, **kwargs)
        if critic.kind != "shared":
            output = inner(*args, **kwargs)
            return output_class(**output, state_values=critic.values(kwargs, None))
        seen: list[Tensor] = []  # TRL's fused head does not hand the hidden states on, so the body is watched
        with self.base_model.register_forward_hook(lambda module, args, out: seen.append(out.last_hidden_state)):
            output = inner(*args, **kwargs)
        return output_class(**output, state_values=critic.values(kwargs, seen[-1]))

    base.forward = types.MethodType(forward, base)
