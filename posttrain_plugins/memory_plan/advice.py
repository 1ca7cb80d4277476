"""Which single change makes a stage fit: tried one after the other, those that change no result first. No paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain_plugins.memory_plan.estimate import Estimator, StageMemory
from posttrain_plugins.memory_plan.method import method_of, options_of_stage, trains
from posttrain_plugins.memory_plan.unknown import Unknown
from posttrain_plugins.models.quantization import is_quantized
from posttrain_plugins.models.training_memory import SHARE, Sharding
from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe.lineage import is_full
from posttrain_plugins.recipe.plan.plan import Plan
from posttrain_plugins.recipe.spec import StageSpec, Use, option_path

__all__ = ["Advice", "Change", "advise", "changes", "fits"]

PROCESSES = (2, 4, 8)


@dataclass(frozen=True)
class Change:
    """One change of a stage.

    Args:
        line: what is given to `posttrain run`.
        spec: the stage with it.
        processes: over which it shards what stays; 1 for all others.
        engine: by which it does.
    """

    line: str
    spec: StageSpec
    processes: int = 1
    engine: str = ""


@dataclass(frozen=True)
class Advice:
    """What a single change brings.

    Args:
        line: what is given to `posttrain run`.
        peak: bytes that the stage then takes.
        fits: is that little enough?
    """

    line: str
    peak: int
    fits: bool


def fits(memory: StageMemory, there: int) -> bool:
    """Tell whether a stage fits into so many bytes, of which libraries and fragments take a part."""
    return memory.peak <= SHARE * there


def advise(plan: Plan, spec: StageSpec, estimator: Estimator, *, least: int | None = None) -> Advice | None:
    """Return the first single change with which a stage fits, else the one that saves most; None where there is none.

    Args:
        plan: with the stage.
        spec: the stage.
        estimator: for the machine.
        least: bytes that the stage is known to need more than; a change that helps takes a tenth less than planned.
    """
    machine, best = estimator.machine, None
    goal = int(SHARE * machine.memory) if least is None else int(SHARE * min(least, machine.memory / SHARE))
    for change in changes(plan, spec, is_gpu=machine.is_gpu):
        other = estimator
        if change.processes > 1:
            sharding = Sharding.of(change.engine, change.processes)
            other = replace(estimator, machine=replace(machine, sharding=sharding))
        # a change that asks for a model which is not here is no advice
        try:
            peak = other.stage(plan, change.spec).peak
        except Unknown:
            continue
        found = Advice(change.line, peak, peak <= goal)
        if found.fits:
            return found
        best = found if best is None or found.peak < best.peak else best
    return best


def changes(plan: Plan, spec: StageSpec, *, is_gpu: bool) -> Iterator[Change]:
    """Yield single changes of a stage that take memory away: first what gives the same result in more time.

    Args:
        plan: with the stage; how models are loaded is said once for all of them.
        spec: the stage.
        is_gpu: optimizers in 8 bits, and several processes, are for GPUs.
    """
    # In this order: who only lacks memory wants the same model, if later, and no other one.
    yield from _same_result(spec)
    options = options_of_stage(spec)
    if is_gpu and spec.launch is None:
        for processes in PROCESSES:
            line = f"--launch zero3 --num-processes {processes}"
            yield Change(line, spec, processes, "zero3")
    if is_gpu and "8bit" not in str(options.get("optim")):
        yield _with_args(spec, {"optim": "adamw_bnb_8bit"})
    if _trains_all(spec):
        # with its own defaults, as the line has it
        lora = Use("adapter", "lora", registry.find("adapter", "lora"))
        line = f"-o '{option_path(spec.id)}.adapter={{use: lora}}'"
        yield Change(line, replace(spec, inputs={**spec.inputs, "adapter": lora}))
    elif not is_quantized(spec.loading) and not any(_trains_all(stage.spec) for stage in plan.stages):
        yield _with_loading(spec, "load_in_4bit", True)
    for name in ("max_length", "max_completion_length"):
        length = options.get(name)
        if isinstance(length, int) and length > 1:
            yield _with_args(spec, {name: length // 2})


def _same_result(spec: StageSpec) -> Iterator[Change]:
    options, method = options_of_stage(spec), method_of(spec)
    if not options.get("gradient_checkpointing", True):
        yield _with_args(spec, {"gradient_checkpointing": True})
    rows = int(options.get("per_device_train_batch_size") or 8)
    passes = int(options.get("gradient_accumulation_steps") or 1)
    # halves, so that the batch of a step, and of GRPO a group in it, stays what it is
    fewer = rows
    while fewer % 2 == 0:
        fewer //= 2
        sizes = {"per_device_train_batch_size": fewer, "gradient_accumulation_steps": passes * rows // fewer}
        yield _with_args(spec, sizes)
    has_reference = spec.schema.declares("reference") == "model" and "DPO" in next(iter(spec.configs.values()))
    if has_reference and not options.get("precompute_ref_log_probs"):
        yield _with_args(spec, {"precompute_ref_log_probs": True})
    if method.has_critic and options.get("critic") not in ("shared", "adapter") and is_full(spec.inputs.get("adapter")):
        yield _with_args(spec, {"critic": "shared"})


def _trains_all(spec: StageSpec) -> bool:
    return trains(spec) and is_full(spec.inputs.get("adapter")) and spec.adapter_mode != "continue"


def _with_args(spec: StageSpec, args: Mapping[str, Any]) -> Change:
    name = next(iter(spec.configs))
    given = {**(spec.params.get(name) or {}), **args}
    values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in args.items()}
    line = " ".join(f"-o {option_path(spec.id)}.{name}.{key}={value}" for key, value in values.items())
    return Change(line, replace(spec, params={**spec.params, name: given}))


def _with_loading(spec: StageSpec, name: str, value: bool) -> Change:
    return Change(f"-o model.{name}={str(value).lower()}", replace(spec, loading={**spec.loading, name: value}))
