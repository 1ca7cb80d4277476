"""Which adapters do not fit which stage, why, and the argument to change: one table, asked before anything is loaded.

The recipe's check asks it with what stands in the recipe; a training stage asks it again with the config that an
adapter plugin gave, for plugins that do not say whose fields their parameters are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import PeftTypeAbilities, abilities_of, moves_base

__all__ = ["PLAIN_CRITIC", "AdapterInStage", "Incompatibility", "check_fits", "incompatibilities", "no_set_up"]

QUANTIZED = ("load_in_4bit", "load_in_8bit")
MIXING = frozenset({"ADALORA", "HIRA", "IA3", "PVERA", "RANDLORA", "VERA"})
"""Types of which PEFT 0.21 has a layer for packed weights that takes its own precision and the base's for one."""
ONE_PRECISION = frozenset({"HIRA", "PVERA"})
"""Those of them that multiply it with float32 whatever the base's is, so that a base in float32 does not help."""
PLAIN_CRITIC = "critic: {use: lora}, or leave critic out; args: {critic_learning_rate: ...} is the critic's own"


@dataclass(frozen=True)
class Incompatibility:
    """Why an adapter does not fit.

    Args:
        where: the stage's field that it is about: `args.use_vllm`, `adapter`.
        message: what cannot work, and why.
        hint: what to change.
    """

    where: str
    message: str
    hint: str


@dataclass(frozen=True)
class AdapterInStage:
    """An adapter in a stage.

    Args:
        peft: what its type can.
        params: its parameters.
        args: the trainer's arguments, with the defaults of its config.
        loading: TRL `ModelConfig`'s fields of the model.
        refuses: what the stage's trainer cannot take, by an ability's name, with the reason: `{"is_prompt": "..."}`.
        reference: the argument that is not 0 where the model with its adapter off is the reference; `model` where it
            always is, and empty where it never is.
        role: the stage's field, `adapter` or `critic`.
        is_on_cpu: will it train without an accelerator? Nobody knows before it runs.
    """

    peft: PeftTypeAbilities
    params: Mapping[str, Any]
    args: Mapping[str, Any]
    loading: Mapping[str, Any]
    refuses: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    role: str = "adapter"
    is_on_cpu: bool = False

    @property
    def is_held(self) -> bool:
        """Is the policy held to the model without its adapter?"""
        return self.reference == "model" or bool(self.reference and self.args.get(self.reference))

    @property
    def mixes(self) -> bool:
        """Do bfloat16, which TRL puts adapters on packed weights into, and the base's precision meet unreconciled?"""
        is_plain = self.loading.get("load_in_4bit") is True and self.loading.get("dtype") in (None, "float32")
        is_plain = is_plain and self.peft.name not in ONE_PRECISION
        autocasts = bool(self.args.get("bf16") or self.args.get("fp16"))
        return bool(self.quantized) and self.peft.name in MIXING and not is_plain and not autocasts

    @property
    def quantized(self) -> str | None:
        """`load_in_4bit`, `load_in_8bit`, or None."""
        return next((name for name in QUANTIZED if self.loading.get(name) is True), None)


def incompatibilities(in_stage: AdapterInStage) -> Iterator[Incompatibility]:
    """Yield everything that does not fit."""
    peft, args, role = in_stage.peft, in_stage.args, in_stage.role
    name, moved = peft.name, moves_base(in_stage.params)
    if peft.has_cache and args.get("gradient_checkpointing"):
        message = f"{name} hands its tokens on as a cache, which gradient checkpointing switches off"
        yield Incompatibility("args.gradient_checkpointing", message, "args: {gradient_checkpointing: false}")
    if not peft.can_merge and args.get("use_vllm"):
        message = f"vLLM is sent the weights with the adapter merged into them, which {name} cannot be"
        yield Incompatibility("args.use_vllm", message, "args: {use_vllm: false}, or use: lora")
    yield from _values(in_stage)
    yield from _with_weights(in_stage, moved)
    if moved and in_stage.is_held:
        message = (
            f"init_lora_weights: {moved} takes a part out of the base, so that the reference, the model without its "
            "adapter, is another model"
        )
        # a coefficient can be set to 0 where it brings the reference in, a loss like DPO's is nothing without one
        or_none = "" if in_stage.reference == "model" else f", or args: {{{in_stage.reference}: 0}}"
        yield Incompatibility(role, message, f"init_lora_weights: true{or_none}")
    if role == "critic":
        yield from _as_critic(in_stage, moved)
    has_copy = args.get("advantage_estimator") == "gae" and args.get("critic") in (None, "separate")
    if role == "adapter" and has_copy and in_stage.quantized and not peft.shares:
        message = f"beside {name} the critic is a copy of the model, which cannot be trained in {in_stage.quantized}"
        yield Incompatibility(role, message, "args: {critic: shared}, or use: lora")
    for ability, reason in in_stage.refuses.items():
        if getattr(peft, ability):
            yield Incompatibility(role, f"{name} does not work here: {reason}", "use: lora")


def _values(in_stage: AdapterInStage) -> Iterator[Incompatibility]:
    """Yield parameters that the type's own config refuses when it is built."""
    params, name = in_stage.params, in_stage.peft.name
    numbers = {key: value for key, value in params.items() if isinstance(value, int | float)}
    if numbers.get("loraplus_lr_ratio", 1) < 1:
        message = f"loraplus_lr_ratio is {numbers['loraplus_lr_ratio']}, expected 1 or more"
        yield Incompatibility(in_stage.role, message, "loraplus_lr_ratio: 16")
    if name == "ADALORA" and numbers.get("init_r", 12) <= numbers.get("target_r", 8):  # PEFT's defaults
        message = f"init_r is {numbers.get('init_r', 12)} and target_r {numbers.get('target_r', 8)}"
        yield Incompatibility(in_stage.role, f"{message}: there is no rank to take away", "set init_r above target_r")
    if name == "BOTTLENECK" and (numbers.get("reduction_factor", 16) <= 0 or numbers.get("bottleneck_size", 1) < 1):
        message = "a bottleneck has a size of 1 or more"
        yield Incompatibility(in_stage.role, message, "set reduction_factor or bottleneck_size")


def _with_weights(in_stage: AdapterInStage, moved: str | None) -> Iterator[Incompatibility]:
    """Yield what does not fit the form and the precision of the base's weights."""
    name, role, quantized = in_stage.peft.name, in_stage.role, in_stage.quantized
    if quantized and not in_stage.peft.quantizes:
        message = f"{name} reads or trains the base's own weights, which {quantized} packs"
        yield Incompatibility(role, message, f"use: lora, or remove {quantized} from model")
    if quantized and moved:
        message = f"init_lora_weights: {moved} computes the adapter from the weights that {quantized} packs"
        yield Incompatibility(role, message, f"init_lora_weights: true, or remove {quantized} from model")
    # Asked of a run alone: the recipe's check does not know the machine, and must not refuse what a cluster's GPU can.
    if in_stage.is_on_cpu and moved == "loftq":
        message = "PEFT computes LoftQ's quantization on an accelerator, and this machine has none"
        yield Incompatibility(role, message, "init_lora_weights: true")
    if in_stage.is_on_cpu and in_stage.mixes:
        message = f"{name} mixes its bfloat16 with the precision of the base, which only autocast reconciles"
        plain = "" if name in ONE_PRECISION else ", or model: {load_in_4bit: true, dtype: float32}"
        yield Incompatibility("args.bf16", message, f"args: {{bf16: true, use_cpu: true}}{plain}")
    if in_stage.is_on_cpu and in_stage.params.get("use_dora") and quantized == "load_in_8bit":
        message = "DoRA reads the base's weights, which bitsandbytes does not unpack from 8 bits on a CPU"
        yield Incompatibility(role, message, "model: {load_in_4bit: true}, or use_dora: false")


def _as_critic(in_stage: AdapterInStage, moved: str | None) -> Iterator[Incompatibility]:
    """Yield what does not fit a critic's adapter, which is trained beside the policy's on one base."""
    if moved:
        message = f"init_lora_weights: {moved} would take a part out of the base that the policy shares"
        yield Incompatibility("critic", message, "init_lora_weights: true")
    if in_stage.params.get("loraplus_lr_ratio"):
        # refused, not ignored: a recipe that names a ratio would report one that nothing was trained with
        message = (
            "loraplus_lr_ratio sets up the optimizer for the policy's adapter, and would do nothing for a critic's"
        )
        hint = "critic: {use: lora} without it, and args: {critic_learning_rate: ...}"
        yield Incompatibility("critic", message, hint)
    if not in_stage.peft.shares:
        message = f"a critic's adapter is trained beside the policy's on one base, which {in_stage.peft.name} cannot be"
        yield Incompatibility("critic", message, "critic: {use: lora} with a LoRA policy, or leave critic out")


def check_fits(stage: str, config: Any, args: Any, loading: Mapping[str, Any], is_on_cpu: bool = False) -> None:
    """Refuse what the recipe's check could not know: what a stranger's plugin gave, and on which machine it runs.

    Args:
        stage: the stage's id.
        config: a `peft.PeftConfig`, or None.
        args: the trainer's config.
        loading: TRL `ModelConfig`'s fields of the model.
        is_on_cpu: is there no accelerator?

    Raises:
        InputError: the first thing that does not fit.
    """
    peft = None if config is None else abilities_of(config)
    if peft is None:
        return  # full fine-tuning, or a type that nobody knows anything of: PEFT itself will say what it cannot
    for found in incompatibilities(AdapterInStage(peft, vars(config), vars(args), loading, is_on_cpu=is_on_cpu)):
        raise InputError(f"stage '{stage}': {found.message}", hint=found.hint)


def no_set_up(name: str) -> str:
    """Return why an adapter that has `prepare(trainer)` cannot be a critic's."""
    return f"adapter '{name}' sets up the trainer for the policy, and would do nothing for the critic"
