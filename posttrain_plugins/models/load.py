"""The one way from a folder or Hub id to a model and its tokenizer, for training, inference, rewards and export.

`loading` are fields of TRL's `ModelConfig`, as recipes write them; `options` are arguments of transformers'
`from_pretrained`. Everything that reads weights ends in `load_full`. A GGUF file is read once, by the stage `gguf`, and
is a folder like any other from then on. No paper.

The revision is the one that was asked for, `model_revision`, for weights and tokenizer alike. Where nobody asked for
one, that of an adapter's base is what the adapter's `adapter_config.json` records, and any other `main`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import ensure_registered
from posttrain_plugins.models.folder import (
    ALLOW_PICKLE,
    Task,
    adapter_config,
    adapters_in,
    base_of,
    gguf_refusal,
    task_of,
    task_of_architecture,
    template_options,
)
from posttrain_plugins.models.load_report import expecting, heads_in
from posttrain_plugins.models.quantization import quantization_config
from posttrain_plugins.models.stack import attach_frozen

__all__ = [
    "inference_options",
    "load_adapted",
    "load_base",
    "load_full",
    "load_model",
    "load_tokenizer",
    "make_room_for_tokens",
    "options_of",
    "sampling_defaults",
    "task_to_load",
    "training_options",
]

OPTIONS = {
    "dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "model_revision": "revision",
    "trust_remote_code": "trust_remote_code",
}
"""TRL `ModelConfig`'s names -> `from_pretrained`'s."""


def options_of(loading: Mapping[str, Any], task: Task | None = "CausalLM") -> dict[str, Any]:
    """Return what `from_pretrained` takes for TRL `ModelConfig`'s fields: dtype, attention, revision, quantization."""
    options = {OPTIONS[name]: value for name, value in loading.items() if name in OPTIONS}
    if not loading.get(ALLOW_PICKLE):
        options["use_safetensors"] = True
    quantization = quantization_config(loading, task)
    return options if quantization is None else {**options, "quantization_config": quantization}


def training_options(loading: Mapping[str, Any], task: Task | None = "CausalLM") -> dict[str, Any]:
    """Return the same as TRL's trainers have it: float32 unless a dtype is given."""
    return {"dtype": "float32", **options_of(loading, task)}


def inference_options(
    loading: Mapping[str, Any], task: Task | None = "CausalLM", device: str | None = None
) -> dict[str, Any]:
    """Return the same for a model that only reads or writes: in the dtype that it was saved in, on one device.

    Args:
        loading: TRL `ModelConfig` fields.
        task: what the model is loaded as.
        device: by default `cuda` where there is one, else `cpu`; `auto` spreads a model over several GPUs.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # a None is what the recipe leaves open; handed on, it would stand in the place of `auto`
    given = {name: value for name, value in options_of(loading, task).items() if value is not None}
    return {"dtype": "auto", **given, "device_map": "auto" if device == "auto" else {"": device}}


def load_model(
    path: str | Path,
    loading: Mapping[str, Any] | None = None,
    device: str | None = None,
    task: Task = "CausalLM",
    **more: Any,
) -> Any:
    """Load a model for inference, or a PEFT adapter with its base and the adapters between.

    Args:
        path: a folder or Hub id.
        loading: TRL `ModelConfig` fields.
        device: see `inference_options`.
        task: what it is loaded as.
        **more: options of `from_pretrained` besides, such as `num_labels`.
    """
    options = {**inference_options(loading or {}, task, device), **more}
    return load_adapted(path, task, **options) if adapter_config(path) else load_full(path, task, **options)


def load_tokenizer(
    path: str | Path, loading: Mapping[str, Any] | None = None, chat_template: str | None = None, **options: Any
) -> Any:
    """Load the tokenizer beside a model; an adapter without one has its base's.

    Args:
        path: a folder or Hub id.
        loading: TRL `ModelConfig` fields, of which the revision counts.
        chat_template: in place of its own.
        **options: of `AutoTokenizer.from_pretrained`.
    """
    from transformers import AutoTokenizer

    # A revision names a state of one repository: the asked one goes with the path that it was asked for, and a base
    # that an adapter names brings its own (`base_of`).
    where, revision = str(path), (loading or {}).get("model_revision")
    if not (Path(path) / "tokenizer_config.json").is_file():
        where, revision = base_of(path, revision)
    if revision:
        options["revision"] = revision
    trust = {"trust_remote_code": bool((loading or {}).get("trust_remote_code"))}
    with _refusing(where):
        tokenizer = AutoTokenizer.from_pretrained(where, **{**trust, **options})
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    # as its prompts were rendered in training: with others the policy reads what it never learned from
    tokenizer.chat_template_kwargs = template_options(path)
    return tokenizer


def sampling_defaults(path: str | Path, revision: str | None = None) -> dict[str, Any]:
    """Return the `temperature`, `top_p` and `top_k` that a model's `generation_config.json` asks for, those it names.

    Args:
        path: a folder, an adapter's too, or a Hub id.
        revision: of a Hub id.
    """
    from transformers import GenerationConfig

    base = base_of(path, revision)
    try:
        # what differs from transformers' own defaults: nobody who made the model has chosen those
        said = GenerationConfig.from_pretrained(base.path, revision=base.revision or "main").to_diff_dict()
    except (OSError, ValueError):  # it has none
        return {}
    return {name: said[name] for name in ("temperature", "top_p", "top_k") if said.get(name) is not None}


@contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    """Tell of a GGUF file, and of a model that brings Python code: transformers would ask on the terminal to run it.

    Raises:
        InputError: it is a GGUF file, it brings code and nobody said `trust_remote_code`, or it has no safetensors and
            nobody said `allow_pickle`.
    """
    if (refusal := gguf_refusal(path)) is not None:
        raise refusal
    try:
        yield
    except OSError as cause:
        if "no file named model.safetensors" not in str(cause):
            raise
        hint = "if you trust who made it: model: {model_name_or_path: ..., allow_pickle: true}"
        raise InputError(f"model {path} has no *.safetensors, and pickle is not read unasked", hint=hint) from cause
    except ValueError as cause:
        if "trust_remote_code" not in str(cause):
            raise
        hint = "if you trust it: model: {model_name_or_path: ..., trust_remote_code: true}"
        raise InputError(f"model {path} brings Python code of its own, which is not run unasked", hint=hint) from cause


def load_full(path: str | Path, task: Task | None = "CausalLM", *, dequantize: bool = False, **options: Any) -> Any:
    """Load a transformers model of full weights.

    Args:
        path: a folder or Hub id.
        task: what it is loaded as; None for the layers alone.
        dequantize: unpack weights that are saved or loaded in few bits.
        **options: of `from_pretrained`.
    """
    import transformers

    # by the task and not by the config's architecture: a causal LM is loaded as a classifier to become one
    loader = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel")
    with _refusing(path):
        model = loader.from_pretrained(str(path), **{"trust_remote_code": False, **options})
    return model.dequantize() if dequantize and getattr(model, "hf_quantizer", None) is not None else model


def load_adapted(folder: str | Path, task: Task = "CausalLM", *, is_trainable: bool = False, **options: Any) -> Any:
    """Load the `PeftModel` of an adapter folder, over its base and all that lies between.

    Args:
        folder: with `adapter_config.json`.
        task: what the model is loaded as.
        is_trainable: does its newest adapter learn?
        **options: of `from_pretrained`, for the base.

    Raises:
        InputError: an adapter below the newest cannot be part of a base.
    """
    import peft

    ensure_registered(folder)  # PEFT fails on a type that nobody has imported yet
    model = load_base(folder, task, **options)
    return getattr(peft, f"PeftModelFor{task}").from_pretrained(model, str(folder), is_trainable=is_trainable)


def load_base(
    folder: str | Path,
    task: Task = "CausalLM",
    *,
    with_newest: bool = False,
    dequantize: bool = False,
    **options: Any,
) -> Any:
    """Load what the newest adapter of a folder is on: a transformers model with the adapters below in force, frozen.

    Args:
        folder: with `adapter_config.json`.
        task: what the model is loaded as.
        with_newest: let the newest adapter be in force too, as one more below the next.
        dequantize: unpack a quantized base before the first adapter.
        **options: of `from_pretrained`; its `revision` is the base's.
    """
    # `revision` is taken out of the options: given on where it is None, it would hide the one that the adapter records
    base = base_of(folder, options.pop("revision", None))
    options |= {"revision": base.revision} if base.revision else {}
    with expecting(heads_in(Path(folder))):  # a classifier's head comes with the adapter
        model = load_full(base.path, task, dequantize=dequantize, **options)
    make_room_for_tokens(model, folder)  # before the first adapter, whose trained embeddings have the new rows
    adapters = adapters_in(folder)
    return attach_frozen(model, adapters if with_newest else adapters[:-1])


def make_room_for_tokens(model: Any, folder: str | Path) -> None:
    """Give a base the rows that an adapter's tokenizer needs: one with more tokens was given them in training.

    PEFT's own `AutoPeftModel` does so too, and its `PeftModel` fails to read an embedding of another size.
    """
    if not (Path(folder) / "tokenizer_config.json").is_file():
        return
    tokens = len(load_tokenizer(folder))
    # never fewer: many models have more rows than tokens, padded to a multiple that is fast
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens)


def task_to_load(path: str | Path, revision: str | None = None) -> Task:
    """Return what a model is for, as its adapter says, else its architecture, which may lie on the Hub."""
    found = task_of(path)
    # an adapter that names no task is left at the default: its base's architecture is not what was trained
    if found is None and not adapter_config(path):
        from transformers import AutoConfig

        options: dict[str, Any] = {"revision": revision} if revision else {}
        with _refusing(path):
            config = AutoConfig.from_pretrained(str(path), trust_remote_code=False, **options)
        found = task_of_architecture(config.architectures)
    return found or "CausalLM"
