"""How many steps and tokens a training stage takes, and how long at the speed of its last run. No paper."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain_plugins.errors import InputError
from posttrain_plugins.memory_plan.method import method_of, options_of_stage, processes_of, trains
from posttrain_plugins.recipe.plan.plan import Plan, PlannedStage

__all__ = ["Work", "work_of"]


@dataclass(frozen=True)
class Work:
    """What a training stage is about to do.

    Args:
        steps: of the optimizer; None where the number of rows decides, and no run has told.
        tokens_per_step: at most, with rows as long as they may be and no longer prompts than completions.
        seconds: at the speed of its last run; None where there was none.
        is_cached: is it done?
    """

    steps: int | None
    tokens_per_step: int | None
    seconds: float | None
    is_cached: bool

    @property
    def tokens(self) -> int | None:
        return self.steps * self.tokens_per_step if self.steps and self.tokens_per_step else None


def work_of(plan: Plan, *, prompt_tokens: int | None = None) -> dict[str, Work]:
    """Return the work of each stage that trains, by its id.

    Args:
        plan: with what has run.
        prompt_tokens: of a prompt, where a trainer samples; None leaves these out.
    """
    return {stage.id: _work(plan, stage, prompt_tokens) for stage in plan.stages if trains(stage.spec)}


def _work(plan: Plan, stage: PlannedStage, prompt_tokens: int | None) -> Work:
    options, method = options_of_stage(stage.spec), method_of(stage.spec)
    try:
        latest = stage.artifact or plan.store.latest(stage.id)
    except InputError:  # a newer version wrote it
        latest = None
    before = latest.manifest.get("metrics", {}) if latest is not None else {}
    ran, took = before.get("steps"), before.get("train_s")
    asked = options.get("max_steps") or 0
    # as many as the last run took, where epochs are asked for: the rows are read when the stage runs
    steps = int(asked) if asked > 0 else int(ran) if ran else None
    rows = (options.get("per_device_train_batch_size") or 8) * (options.get("gradient_accumulation_steps") or 1)
    rows *= processes_of(stage.spec)
    if method.has_rollouts:
        completion = options.get("max_completion_length") or options.get("max_new_tokens")
        length = completion and completion + (prompt_tokens or 0)
    else:
        length = options.get("max_length")
    tokens = rows * method.rows_per_item * length if length else None
    seconds = took / ran * steps if took and ran and steps else None
    return Work(steps, tokens, seconds, stage.artifact is not None)
