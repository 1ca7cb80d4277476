"""Every private name of TRL, PEFT and transformers that we touch; `tests/test_compat.py` holds each to what we expect.

Nothing else in the project reaches below their public interfaces, but for the methods that `PPOTrainer` and
`ProcessGRPOTrainer` override: those are listed in `OVERRIDDEN`, with the arguments that TRL 1.16 gives them.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = [
    "FORWARD_EXTRAS",
    "OVERRIDDEN",
    "active_config",
    "add_metric",
    "are_adapters_off",
    "as_reference",
    "aside",
    "checkpointed_layers",
    "drop_metric",
    "first_batch",
    "gathered",
    "generation_period",
    "hide_from_vllm",
    "in_force",
    "is_peft",
    "is_quantized",
    "let_heads_be",
    "level_vera",
    "model_path",
    "no_dropout",
    "observe_losses",
    "observe_rewards",
    "recomputed_with",
    "rollout_greedily",
    "set_reward_names",
    "switched",
    "switches",
    "value_output_class",
    "whole",
    "without_checkpointing",
]

OVERRIDDEN: Mapping[str, tuple[str, ...]] = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("model", "inputs"),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep"),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
    "create_optimizer": ("model",),
}
"""Methods of `trl.GRPOTrainer` that our subclasses override, with their first arguments. `_load_from_checkpoint` is
`transformers.Trainer`'s, and `MultiAdapterSFTTrainer` overrides it too."""

FORWARD_EXTRAS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""What a rollout of a vision-language model holds for its forward pass beside ids and mask."""


# --- any trainer -----------------------------------------------------------------------------------------------------


def observe_losses(trainer: Any, sink: Callable[[Any], None]) -> None:
    """Calls `sink(loss)` with every micro-step's detached loss, before transformers filters NaN out of its logs."""
    training_step = trainer.training_step

    def observed(*args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        sink(loss.detach())
        return loss

    trainer.training_step = observed


def generation_period(args: Any) -> int:
    """After how many optimizer steps the rollout buffer of GRPO or RLOO is used up; 1 for trainers that have none.

    TRL does not save the buffer, so only a checkpoint at a multiple of this continues as if nothing had happened.
    """
    micro_steps = (getattr(args, "steps_per_generation", None) or 1) * (getattr(args, "num_iterations", None) or 1)
    accumulation = args.gradient_accumulation_steps
    return next(n for n in range(1, micro_steps + 1) if n * accumulation % micro_steps == 0)


def first_batch(trainer: Any) -> Any:
    """The first batch as the trainer's loss would see it; of a trainer that samples, with its completions."""
    trainer.model.train()
    with trainer.compute_loss_context_manager():
        return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def set_reward_names(trainer: Any, names: list[str]) -> None:
    """What is logged is the recipe's key; TRL has no argument for it."""
    assert len(trainer.reward_func_names) == len(names)
    trainer.reward_func_names = names


# --- GRPO's rollouts and metrics -------------------------------------------------------------------------------------


def add_metric(trainer: Any, name: str, value: float) -> None:
    """Logs a figure beside TRL's own, averaged as they are."""
    trainer._metrics["train" if trainer.model.training else "eval"][name].append(value)


def drop_metric(trainer: Any, name: str) -> None:
    """Takes a figure out that says nothing here."""
    trainer._metrics["train" if trainer.model.training else "eval"].pop(name, None)


def observe_rewards(trainer: Any, sink: Callable[[Any, Any, Any, Any], None]) -> None:
    """Calls `sink(inputs, prompts, completions, rewards)` with every rollout that is scored, where a trainer does.

    The first three are this process's (B), `rewards` a tensor (N, F) of all processes, in the order of the processes.
    """
    calculate = getattr(trainer, "_calculate_rewards", None)
    if calculate is None:
        return

    def observed(inputs: Any, prompts: Any, completions: Any, *args: Any) -> Any:
        rewards = calculate(inputs, prompts, completions, *args)
        sink(inputs, prompts, completions, rewards)
        return rewards

    trainer._calculate_rewards = observed


def gathered(rows: list[Any]) -> list[Any]:
    """The rows of all processes, in their order."""
    from accelerate.utils import gather_object

    return list(gather_object(rows))


@contextlib.contextmanager
def aside(trainer: Any) -> Iterator[None]:
    """Within, a second rollout leaves no trace in metrics, token counter and logs, and no observer sees its rewards."""
    mode = "train" if trainer.model.training else "eval"
    kept, seen = trainer._metrics[mode], trainer.state.num_input_tokens_seen
    trainer._metrics[mode] = defaultdict(list)
    observed = trainer.__dict__.pop("_calculate_rewards", None)
    try:
        yield
    finally:
        if observed is not None:
            trainer._calculate_rewards = observed
        trainer._metrics[mode], trainer.state.num_input_tokens_seen = kept, seen
        trainer._pending_extra_logs.clear()
        trainer._pending_metrics.clear()


def rollout_greedily(trainer: Any, prompts: list[Any]) -> tuple[list[Any], list[list[int]]]:
    """One greedy completion for each prompt, by the trainer's own generation: texts or messages, and token ids."""
    with _greedy(trainer):
        _, ids, _, completions, *_ = trainer._generate(prompts)
    return completions, ids


@contextlib.contextmanager
def _greedy(trainer: Any) -> Iterator[None]:
    if trainer.use_vllm:
        engine, sampled = trainer.vllm_generation, trainer.vllm_generation.temperature
        engine.temperature = 0.0
        try:
            yield
        finally:
            engine.temperature = sampled
        return
    config, kwargs = trainer.generation_config, trainer.generation_kwargs
    greedy = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None}  # the unset values
    trainer.generation_config = type(config)(**{**config.to_dict(), **greedy})
    trainer.generation_kwargs = {**kwargs, **greedy}
    try:
        yield
    finally:
        trainer.generation_config, trainer.generation_kwargs = config, kwargs


def hide_from_vllm(trainer: Any, is_ours: Callable[[str], bool]) -> None:
    """Keeps parameters that vLLM's copy of the model lacks out of the weight sync."""
    engine = getattr(trainer, "vllm_generation", None)
    if engine is None:
        return
    every = engine._iter_named_params
    engine._iter_named_params = lambda: (pair for pair in every() if not is_ours(pair[0]))


def without_checkpointing(trainer: Any) -> Any:
    """A context without gradient checkpointing, for passes without gradients (as TRL has around its own)."""
    from trl.models.utils import disable_gradient_checkpointing

    return disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs)


def no_dropout(model: Any) -> None:
    """Sets every dropout of a model to 0, as TRL's `disable_dropout` does before ours is added."""
    from trl.trainer.utils import disable_dropout_in_model

    disable_dropout_in_model(model)


def model_path(model: Any) -> str:
    """The folder or Hub id that a model was loaded from; `""` for one that was built in memory."""
    return str(getattr(model.config, "_name_or_path", "") or "")


def value_output_class() -> Any:
    """TRL's output of the fused LM head with two more fields; DDP finds tensors only in a dataclass's fields."""
    from dataclasses import dataclass

    from trl.trainer.utils import FusedCausalLMOutput

    @dataclass
    class ValueOutput(FusedCausalLMOutput):  # type: ignore[misc]
        """`state_values` is (B, L - 1): V of the state before each token; `values` would hide `dict.values`."""

        state_values: Any = None
        logits: Any = None  # without the fused head

    return ValueOutput


@contextlib.contextmanager
def whole(model: Any) -> Iterator[None]:
    """Within, every parameter has its values on this process, also where DeepSpeed's ZeRO-3 keeps but a piece of it."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        yield


# --- the reference of DPO --------------------------------------------------------------------------------------------


def as_reference(trainer: Any) -> Any:
    """A context in which the policy of a `trl.DPOTrainer` without a reference model is the reference, as TRL has it."""
    from trl.trainer.utils import use_adapter

    if trainer.ref_model is not None or not is_peft(trainer.model):
        return contextlib.nullcontext()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)


def is_quantized(model: Any) -> bool:
    """Is it a model, not a path, with 4-bit or 8-bit weights?"""
    return any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))


# --- PEFT's active adapter, and gradient checkpointing ---------------------------------------------------------------


def switches(model: Any) -> list[Any]:
    """The layers of a model, itself included, that choose by their own field which adapter they apply."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


@contextlib.contextmanager
def switched(layers: Iterable[Any], adapter: str) -> Iterator[None]:
    """Sets only the field that the layers read; `set_adapter` would also freeze every other adapter."""
    before = [(layer, layer._active_adapter) for layer in layers]
    for layer, _ in before:
        layer._active_adapter = [adapter]
    try:
        yield
    finally:
        for layer, active in before:
            layer._active_adapter = active


def is_peft(model: Any) -> bool:
    """Is it a `PeftModel`? The base inside one, and one that was unloaded, carry a `peft_config` too."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def active_config(model: Any) -> Any:
    """The `PeftConfig` of the adapter that a `PeftModel` trains; None for any other model, and for a path."""
    return model.peft_config[model.active_adapter] if is_peft(model) else None


def let_heads_be(model: Any) -> None:
    """Gives what trains whole beside an adapter the precision of the module that it is a copy of.

    TRL puts all that learns on a quantized base into bfloat16, also a classifier's head, which is no adapter and is fed
    by a model in float32 where that is its dtype.
    """
    from peft.utils.other import ModulesToSaveWrapper

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            dtypes = [p.dtype for p in wrapper.original_module.parameters() if p.is_floating_point()]
            if dtypes:
                wrapper.modules_to_save.to(dtypes[0])


def level_vera(model: Any) -> None:
    """Gives VeRA's random matrices the precision of its vectors, which TRL puts into bfloat16 on a quantized base.

    PEFT 0.21 multiplies the two as they are, and sampling happens outside of autocast.
    """
    for layer in model.modules():
        for adapter, vector in getattr(layer, "vera_lambda_d", {}).items():
            for matrices in (layer.vera_A, layer.vera_B):  # all layers share them
                if matrices[adapter].dtype != vector.dtype:
                    matrices[adapter] = matrices[adapter].to(vector.dtype)


def are_adapters_off(model: Any) -> bool:
    """Inside PEFT's `disable_adapter()`?"""
    return bool(getattr(model, "_adapters_disabled", False))


def in_force(model: Any) -> str | None:
    """The adapter that a PEFT model applies, None for none and for a model without."""
    return None if are_adapters_off(model) or not is_peft(model) else str(model.active_adapter)


def checkpointed_layers(model: Any) -> list[Any]:
    """The modules that recompute a forward pass in backward."""
    is_on = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    return [module for module in is_on if hasattr(module, "_gradient_checkpointing_func")]


@contextlib.contextmanager
def recomputed_with(
    layers: Iterable[Any], within: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Passes made within recompute `within(layer, forward)` in backward instead of the bare `forward`."""
    before = [(layer, layer._gradient_checkpointing_func) for layer in layers]
    for layer, checkpoint in before:
        layer._gradient_checkpointing_func = _through(layer, checkpoint, within)
    try:
        yield
    finally:
        for layer, checkpoint in before:
            layer._gradient_checkpointing_func = checkpoint


def _through(layer: Any, checkpoint: Callable[..., Any], within: Callable[..., Any]) -> Callable[..., Any]:
    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return checkpoint(within(layer, forward), *args, **kwargs)

    return run
