"""A stage that ran out of memory: how libraries tell it, and the change with which it fits. No paper."""

from __future__ import annotations

from posttrain_plugins.errors import PLUGIN_FAILURES, StageFailed
from posttrain_plugins.recipe.plan.plan import Plan, PlannedStage
from posttrain_plugins.recipe.spec import option_path

__all__ = ["stage_out_of_memory"]

TOLD_AS = ("can't allocate memory", "CUDA out of memory", "std::bad_alloc")


def stage_out_of_memory(cause: BaseException, plan: Plan, stage: PlannedStage) -> StageFailed | None:
    """Return the error of a stage that ran out of memory, with the memory plan's advice; None of any other failure.

    Args:
        cause: what the stage has raised.
        plan: with the stage.
        stage: the stage.
    """
    is_told = any(words in str(cause) for words in TOLD_AS)
    if not (isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or is_told):
        return None
    # torch's own message goes on with statistics and settings of its allocator
    told = str(cause).partition("\n")[0] or type(cause).__name__
    return StageFailed(f"stage '{stage.id}' ran out of memory: {told}", hint=_advice(plan, stage) or _usual(stage))


def _advice(plan: Plan, stage: PlannedStage) -> str | None:
    """Return the plan's advice for this machine, None where it has none: an estimate must not hide what happened."""
    try:
        from posttrain_plugins.memory_plan.advice import advise
        from posttrain_plugins.memory_plan.estimate import Estimator
        from posttrain_plugins.memory_plan.method import trains
        from posttrain_plugins.memory_plan.sizes import HERE, machine, shown

        if not trains(stage.spec):
            return None
        estimator = Estimator(machine(HERE))
        planned = estimator.stage(plan, stage.spec)
        found = advise(plan, stage.spec, estimator, least=planned.peak)
    except PLUGIN_FAILURES:
        return None
    if found is None or found.peak >= planned.peak:
        return None
    sizes = (
        f"it then takes {shown(found.peak)}, planned were {shown(planned.peak)} of {shown(estimator.machine.memory)}"
    )
    return f"posttrain run RECIPE {found.line} ({sizes}; posttrain plan RECIPE --memory here)"


def _usual(stage: PlannedStage) -> str:
    if not stage.spec.configs:
        return "lower num_generations or max_tokens, or load the model with load_in_4bit: true"
    args = f"-o {option_path(stage.id)}.args"
    return (
        f"lower {args}.per_device_train_batch_size and raise {args}.gradient_accumulation_steps by the same factor, "
        "shorten max_length or max_completion_length, use an adapter, or load the model with load_in_4bit: true"
    )
