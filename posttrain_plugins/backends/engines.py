"""Which engine answers for a model, and what vLLM takes: checked before anything is loaded, without vLLM where need be.

vLLM's options are read from the source of its own `EngineArgs` where it is installed. A recipe may be checked on a
machine without it: there a name that looks like one of the common options, and is none, is a mistake, and any other is
left to the machine that runs it. No paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.plugins.schema import Field, accepts, field_of, type_name
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.types import Issue, server_of

__all__ = ["TRANSFORMERS", "VLLM", "check_engine", "engine_issues"]

TRANSFORMERS, VLLM = "transformers", "vllm"
NONE: Mapping[str, Any] = MappingProxyType({})
ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs"
THE_MODELS = ("model", "tokenizer", "revision", "tokenizer_revision", "enable_lora", "max_lora_rank")
"""What the model that is asked says already."""

COMMON = {
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"), int),
    **dict.fromkeys(("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"), int),
    **dict.fromkeys(("gpu_memory_utilization", "cpu_offload_gb", "swap_space"), float),
    **dict.fromkeys(("enforce_eager", "enable_prefix_caching", "disable_log_stats", "trust_remote_code"), bool),
    **dict.fromkeys(("dtype", "quantization", "kv_cache_dtype", "model_impl", "distributed_executor_backend"), str),
}
"""Options that have had these names and types for as long as vLLM's engine has had arguments."""
COUNTS = tuple(name for name, kind in COMMON.items() if kind is int)


def engine_issues(engine: str, options: Mapping[str, Any] = NONE, models: int = 1) -> Iterator[Issue]:
    """Yield what is wrong with an engine and the options for it.

    Args:
        engine: `transformers`, `vllm`, or the URL of a server that has the model.
        options: for vLLM.
        models: how many the engine is to answer for.
    """
    server = server_of(engine)
    if server is None and engine not in (TRANSFORMERS, VLLM):
        found = f"engine is {engine!r}, expected 'transformers', 'vllm' or the URL of a server"
        yield Issue(found, suggest(engine, (TRANSFORMERS, VLLM)) or "change engine", "engine")
    if server is not None and server[1] and models > 1:
        found = f"engine names one model, {server[1]!r}, and {models} are asked"
        yield Issue(found, f"{server[0]}, which must list each of them by its name", "engine")
    if options and engine != VLLM:
        yield Issue(f"vllm has options ({', '.join(options)}), but engine is {engine!r}", "engine: vllm", "vllm")
        return
    known, is_whole = _known_options()
    for name, value in options.items():
        yield from _option_issues(name, value, known, is_whole)


def check_engine(engine: str, options: Mapping[str, Any] = NONE) -> None:
    """See that there is such an engine, and that it takes these options.

    Raises:
        InputError: for the first thing that is wrong.
    """
    for issue in engine_issues(engine, options):
        raise InputError(issue.message, hint=issue.hint)


def _known_options() -> tuple[Mapping[str, Field], bool]:
    """Return vLLM's options, and whether these are all of them."""
    try:
        return of_config(ENGINE_ARGS).fields, True
    except LookupError:
        return {name: field_of(name, kind, None) for name, kind in COMMON.items()}, False


def _option_issues(name: str, value: Any, known: Mapping[str, Field], is_whole: bool) -> Iterator[Issue]:
    place = f"vllm.{name}"
    if name in THE_MODELS:
        yield Issue(f"vllm cannot be given {name!r}: it is the model's own", "remove it", place)
    elif name not in known:
        near = suggest(name, known)
        if is_whole or near:
            yield Issue(f"vLLM has no option {name!r}", near or "see `vllm serve --help`", place)
    elif not accepts(known[name].type, value):
        yield Issue(f"vllm.{name} is {value!r}, expected {type_name(known[name].type)}", None, place)
    elif name in COUNTS and isinstance(value, int) and value < 1 and value != -1:  # -1: as much as fits
        yield Issue(f"vllm.{name} is {value}, expected 1 or more", None, place)
    elif name == "gpu_memory_utilization" and not 0 < value <= 1:
        yield Issue(f"vllm.{name} is {value}, expected a share above 0 and up to 1", "0.9 is vLLM's default", place)
