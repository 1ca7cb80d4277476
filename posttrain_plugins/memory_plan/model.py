"""Which model a stage trains, and that model on the meta device: its config, its adapters, what learns. No paper."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import PosttrainError
from posttrain_plugins.memory_plan.unknown import Unknown
from posttrain_plugins.models.folder import Task, base_of
from posttrain_plugins.models.training_memory import packed_bytes
from posttrain_plugins.recipe.build import build, construct
from posttrain_plugins.recipe.lineage import is_full, layers, mode_of
from posttrain_plugins.recipe.plan.plan import Plan
from posttrain_plugins.recipe.spec import External, FromStage, Input, Object, StageSpec, Use

__all__ = [
    "Subject",
    "bits_of",
    "config_of",
    "dtype_of",
    "on_meta",
    "peft_config_of",
    "subject_of",
    "weight_bytes",
]

DTYPES = {"auto": "", "float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


@dataclass(frozen=True)
class Subject:
    """The model of a training stage.

    Args:
        config: of transformers.
        task: PEFT's task type, `CAUSAL_LM`, `SEQ_CLS` or `TOKEN_CLS`.
        dtype: of the weights, by name.
        bits: 4 or 8 where they are packed, else 16.
        is_nested: are the constants of 4 bits packed too?
        adapter: the `peft.PeftConfig` that is trained; None trains all parameters.
        below: the configs of the adapters that it lies on and that stay around packed weights.
        prepare: what the adapter's plugin does to a trainer, such as freezing layers.
        continues: is an adapter gone on with? TRL then keeps a copy of it as the reference.
        attention: transformers' name, where the recipe gives one.
    """

    config: Any
    task: str
    dtype: str
    bits: int = 16
    is_nested: bool = False
    adapter: Any = None
    below: tuple[Any, ...] = ()
    prepare: Any = None
    continues: bool = False
    attention: str | None = None


def subject_of(plan: Plan, spec: StageSpec, task: str) -> Subject:
    """Return the model that a stage trains, as `trainers.start` would make it.

    Args:
        plan: with what is made already.
        spec: a stage with a trainer's config.
        task: PEFT's task type.

    Raises:
        Unknown: nobody has its config before a stage has run, or it is not here.
    """
    # by the recipe's own words, as `starting_point` has it: a run decides by files that are not there yet
    stages = {stage.id: stage.spec for stage in plan.stages}
    source, mode = spec.inputs.get("model"), mode_of(stages, spec)
    config = config_of(plan, source) if source is not None else _new_config(spec)
    kept = layers(stages, source).made_of if source is not None and mode in ("continue", "stack") else ()
    if mode == "continue":
        adapter, kept = peft_config_of(kept[-1], task), kept[:-1]
    else:
        adapter = None if is_full(spec.inputs.get("adapter")) else peft_config_of(spec.inputs["adapter"], task)
    named = spec.inputs.get("adapter")
    object_ = build(named) if isinstance(named, Use) and is_full(named) else None
    args = next((spec.params.get(name) or {} for name in spec.configs), {})
    loading = {**spec.loading, **(args.get("model_init_kwargs") or {})}
    return Subject(
        config,
        task,
        dtype_of(loading, config),
        bits := bits_of(loading),
        bool(loading.get("use_bnb_nested_quant")),
        adapter,
        tuple(peft_config_of(one, "CAUSAL_LM") for one in kept) if bits < 16 else (),  # else merged, `attach_frozen`
        getattr(object_, "prepare", None),
        mode == "continue",
        loading.get("attn_implementation"),
    )


def config_of(plan: Plan, source: Input) -> Any:
    """Return the transformers config of a model of the recipe, made or not.

    Raises:
        Unknown: with the reason.
    """
    from transformers import AutoConfig

    if isinstance(source, External):
        base = base_of(source.path, source.loading.get("model_revision"))
        options = {"revision": base.revision} if base.revision else {}
        try:
            return AutoConfig.from_pretrained(base.path, trust_remote_code=False, **options)
        except (OSError, ValueError) as cause:
            raise Unknown(f"the config of {base.path} is not here: {str(cause).partition(chr(10))[0]}") from cause
    if not isinstance(source, FromStage):
        raise Unknown("its model is not one of the recipe")
    stage = plan[source.stage]
    if stage.artifact is not None and stage.artifact.model_path is not None:
        return AutoConfig.from_pretrained(base_of(stage.artifact.model_path).path)
    # a training changes no shape, and neither does a merge or an export
    before = stage.spec.inputs.get("model")
    return config_of(plan, before) if before is not None else _new_config(stage.spec)


def _new_config(spec: StageSpec) -> Any:
    """Return the config of a model that a stage makes from its parameters."""
    from transformers import AutoConfig

    kind = spec.plugin.name
    try:
        if kind == "gguf":
            (file,) = construct(spec.plugin.load(), dict(spec.params)).reads()
            with tempfile.TemporaryDirectory() as folder:  # alone, as the stage reads it
                (Path(folder) / file.name).symlink_to(file.absolute())
                return AutoConfig.from_pretrained(folder, gguf_file=file.name)
        fields = dict(spec.params.get("config") or {})
        if "model_type" in fields:
            fields.setdefault("vocab_size", len(_tokenizer(spec)))
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (PosttrainError, ImportError, OSError, TypeError, ValueError) as cause:
        raise Unknown(f"the config of '{spec.id}' cannot be read: {cause}") from cause
    raise Unknown(f"unknown until '{spec.id}' has run")


def _tokenizer(spec: StageSpec) -> Any:
    from posttrain_plugins.plugins.registry import import_object
    from posttrain_plugins.trainers.random_model import tokenizer_from

    given = spec.inputs.get("tokenizer")
    target = given.target if isinstance(given, Object) else None
    is_object = target is not None and ":" in target
    return tokenizer_from(spec.id, import_object(target) if is_object and target else target)


def peft_config_of(adapter: Any, task: str) -> Any:
    """Return the `peft.PeftConfig` of a recipe's adapter or of a folder, for a task as `trainers.start` makes it."""
    from peft import PeftConfig

    config = build(adapter) if isinstance(adapter, Use) else PeftConfig.from_pretrained(str(adapter))
    if task == "CAUSAL_LM":
        return config
    changes: dict[str, Any] = {"task_type": task}
    if hasattr(config, "modules_to_save"):
        changes["modules_to_save"] = [*(config.modules_to_save or []), "score"]
    if task == "TOKEN_CLS" and hasattr(config, "exclude_modules"):
        changes["exclude_modules"] = ["score"]
    return replace(config, **changes)


def dtype_of(loading: Mapping[str, Any], config: Any) -> str:
    """Return the dtype of the weights: TRL's default is float32, whatever the file has."""
    name = str(loading.get("dtype") or "float32").removeprefix("torch.")
    return DTYPES.get(name, name) or str(config.dtype or "float32").removeprefix("torch.")


def bits_of(loading: Mapping[str, Any]) -> int:
    """Return the bits of a packed weight, 16 where none is packed."""
    return 4 if loading.get("load_in_4bit") else 8 if loading.get("load_in_8bit") else 16


def on_meta(subject: Subject, task: Task, *, layers_kept: int | None = None, prepare_base: Any = None) -> Any:
    """Build the model on the meta device, with the adapter that learns.

    Args:
        subject: the model.
        task: what it is loaded as.
        layers_kept: so many decoder layers only.
        prepare_base: what is done to it before the adapter comes, such as TRL's fused head.
    """
    import torch
    import transformers
    from peft import get_peft_model

    from posttrain_plugins.memory_plan.trace import ATTENTION, decoder_layers

    loader = getattr(transformers, f"AutoModelFor{task}")
    config = copy.deepcopy(subject.config)
    options: dict[str, Any] = {"dtype": getattr(torch, subject.dtype)}
    if task != "CausalLM":
        options["num_labels"] = 1
        if config.pad_token_id is None:
            config.pad_token_id = 0  # a classifier of several rows asks for it
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        if task != "CausalLM":
            config.num_labels = options.pop("num_labels")
        try:
            model = loader.from_config(config, attn_implementation=subject.attention or ATTENTION, **options)
        except (ValueError, NotImplementedError):  # an architecture with an attention of its own
            model = loader.from_config(config, **options)
        kept = decoder_layers(model)
        # before the adapter, which would go around layers that are about to go
        if layers_kept is not None and kept is not None:
            del kept[layers_kept:]
        if prepare_base is not None:
            prepare_base(model)
        if subject.adapter is not None:
            model = get_peft_model(model, copy.deepcopy(subject.adapter))
            if subject.bits < 16:  # of the base, what is not packed stays as it was loaded
                _as_trl_trains_packed(model)
    return model


def _as_trl_trains_packed(model: Any) -> None:
    """Give what learns on packed weights the dtype that TRL gives it."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def weight_bytes(model: Any, subject: Subject) -> int:
    """Return the bytes of the weights that do not learn by an adapter, packed where the recipe packs them.

    Args:
        model: on the meta device, without an adapter.
        subject: says how they are packed.
    """
    from torch import nn

    # bitsandbytes leaves the head, and what is tied to it, as it is; a classifier's `score` too, `quantization_config`
    head = model.get_output_embeddings()
    outside = {id(head.weight)} if head is not None else set()
    packed: dict[int, int] = {}
    if subject.bits < 16:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and id(module.weight) not in outside and name.split(".")[-1] != "score":
                weight = module.weight
                bits: Any = subject.bits
                packed[id(weight)] = packed_bytes(
                    weight.numel(), bits, rows=weight.shape[0], is_nested=subject.is_nested
                )
    # once, where a head is the embedding
    kept = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return sum(packed.get(key, one.numel() * one.element_size()) for key, one in kept.items())
