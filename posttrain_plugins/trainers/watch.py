"""What follows a training stage step by step: figures, NaN, the user's wish to stop, and checkpoints.

A checkpoint is taken when the last one is older than a minute and than fifty times what saving costs, for RL only
between two generations; a file `complete` is put into it after everything else, so that a torn one is passed over.
So is one from which the rest of the training would not be the same: between the steps of a generation, without the
optimizer, or of the last step, after which transformers would take one more.

All processes save and stop together, so the first one's clock and signals hold for all.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from posttrain_plugins.checkpoints import generation_period, mark_complete
from posttrain_plugins.errors import NonFiniteLoss
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.resume_state import restore_state, save_state
from posttrain_plugins.types import StageContext

__all__ = ["follow"]

CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 0.02  # of the training time, at most, goes into checkpoints that the recipe did not ask for


def follow(context: StageContext, trainer: Any) -> _Watch:
    """Add the watch to a trainer, in place of its own prints; `is_stopped` of what is returned tells how it ended."""
    from transformers import PrinterCallback, TrainerCallback

    class Watch(_Watch, TrainerCallback):  # type: ignore[misc]
        """`_Watch` as a transformers callback."""

    watch = Watch(context, trainer)
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)
    compat.observe_losses(trainer, watch.observe)
    return watch


class _Watch:
    """Called by the trainer; keeps the loss of the optimizer step, the newest figures, and when it saved last."""

    def __init__(self, context: StageContext, trainer: Any) -> None:
        self.context = context
        self.trainer = trainer
        self.args = trainer.args
        self.processes = trainer.args.world_size
        self.wait_for_everyone = trainer.accelerator.wait_for_everyone
        self.period = generation_period(trainer.args)
        self.by_time = trainer.args.save_strategy == "no"
        self.can_resume = not trainer.args.save_only_model
        self.is_stopped = self.is_shown_by_log = False
        self.loss: Any = None
        self.figures: dict[str, float] = {}
        self.seconds_before = 0.0  # of the training up to the checkpoint that it went on from
        self.began = self.saved_at = time.monotonic()
        self.save_began = 0.0
        self.save_cost_s = 0.0

    def observe(self, loss: Any) -> None:
        # a tensor, added up where it lies: its value is asked for once a step, so that no micro-step waits for the GPU
        self.loss = loss if self.loss is None else self.loss + loss

    @property
    def seconds(self) -> float:
        """How long the training has taken, what was lost by a kill not counted."""
        return self.seconds_before + time.monotonic() - self.began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = self.context.resume_from
        if checkpoint is not None:
            seconds = restore_state(checkpoint, self.trainer, self.context.inputs)
            if seconds is None:
                self.context.reporter.note(f"figures of the end are of the steps after {checkpoint.name} alone")
            self.seconds_before = seconds or 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        loss, self.loss = float(self.loss), None
        if not abs(loss) < float("inf"):
            where = self.context.option_path or f"stages.{self.context.stage}"
            raise NonFiniteLoss(
                f"loss is {loss} at step {state.global_step} of stage '{self.context.stage}'",
                hint=f"lower it: -o {where}.args.learning_rate={args.learning_rate / 10:g}",
            )
        self.figures["loss"] = loss
        # a step that is logged is shown then: until the log comes, the other figures are those of the step before
        self.is_shown_by_log = bool(control.should_log)
        if not self.is_shown_by_log:
            self._show(state)
        at_boundary = state.global_step % self.period == 0
        # not after the last step: the trainer ends by itself, and a checkpoint from there would train one step more
        if at_boundary and state.global_step < state.max_steps:
            stops, saves = self._decide()
            if stops:
                self.is_stopped = control.should_save = control.should_training_stop = True
            elif saves:
                control.should_save = True
        self.save_began = time.monotonic()
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        is_before_end = state.global_step < state.max_steps
        can_go_on = self.can_resume and is_before_end and state.global_step % self.period == 0
        if can_go_on and folder.is_dir():
            save_state(folder, self.trainer, self.context.inputs, self.seconds)
        if self.processes > 1:  # transformers waits for nobody here: another process may still write its random state
            self.wait_for_everyone()
        if can_go_on and state.is_world_process_zero and folder.is_dir():
            mark_complete(folder)
            for other in folder.parent.glob("checkpoint-*") if self.by_time else ():
                if other != folder:  # those that nobody asked for go, now that there is a newer one
                    shutil.rmtree(other, ignore_errors=True)
        self.saved_at = time.monotonic()
        self.save_cost_s = self.saved_at - self.save_began
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
        if logs is not None and "train_loss" in logs and self.seconds_before:
            # the last line is of all steps, and so is its time; transformers has put a copy of it into the history
            runtime = logs["train_runtime"] + self.seconds_before
            share = logs["train_runtime"] / runtime
            for row in (logs, state.log_history[-1]):
                rates = {name: rate * share for name, rate in row.items() if name.endswith("_per_second")}
                row.update({**rates, "train_runtime": runtime})
        for name, value in (logs or {}).items():
            if isinstance(value, int | float) and name not in ("epoch", "total_flos"):
                self.figures[name] = float(value)
        if self.is_shown_by_log:
            self.is_shown_by_log = False
            self._show(state)
        return control

    def _show(self, state: Any) -> None:
        self.context.reporter.progress(state.global_step, state.max_steps, "step", self.figures)

    def _decide(self) -> tuple[bool, bool]:
        """Stop here? Save here? As the first process finds: another may be over the minute when that one is not."""
        age = time.monotonic() - self.saved_at
        is_due = age > max(CHECKPOINT_SECONDS, self.save_cost_s / CHECKPOINT_SHARE)
        stops, saves = bool(self.context.should_stop()), self.by_time and self.can_resume and is_due
        # a process that stopped alone would leave the others in a collective without their peer
        if self.processes > 1:
            from accelerate.utils import broadcast_object_list

            stops, saves = broadcast_object_list([stops, saves])
        return stops, saves
