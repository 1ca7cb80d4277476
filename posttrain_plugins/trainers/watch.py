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
from posttrain_plugins.launch.rank import check_engine
from posttrain_plugins.record.figures import FiguresFile
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.memory import peak_gib, reset_peak
from posttrain_plugins.trainers.resume_state import restore_state, save_state
from posttrain_plugins.types import StageContext

__all__ = ["follow"]

CHECKPOINT_SECONDS = 60.0
OTHERS = ("epoch", "total_flos")
"""What the trainer logs beside figures."""
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
    # a rollout may take longer than all else: that it gets on shows token by token, to who started several processes
    each = watch.beat if watch.processes > 1 else None
    watch.samples = compat.observe_generation(trainer, watch.observe_generation, each)
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
        self.is_stopped = self.is_shown_by_log = self.samples = False
        self.is_on_gpu = False
        self.loss: Any = None
        self.generation_s = 0.0  # of this step
        self.own: dict[str, float] = {}  # figures of this very step
        self.seen: dict[str, tuple[Any, int]] = {}
        self.figures: dict[str, float] = {}  # the newest of each
        self.of_step: set[str] = set()  # names of the figures that the newest step has
        self.file: FiguresFile | None = None  # of the first process
        self.seconds_before = 0.0  # of the training up to the checkpoint that it went on from
        self.began = self.saved_at = time.monotonic()
        self.save_began = 0.0
        self.save_cost_s = 0.0

    def observe(self, loss: Any) -> None:
        # a tensor, added up where it lies: its value is asked for once a step, so that no micro-step waits for the GPU
        self.loss = loss if self.loss is None else self.loss + loss
        self.beat()

    def observe_generation(self, seconds: float) -> None:
        self.generation_s += seconds

    def beat(self) -> None:
        self.context.beat(self.trainer.state.global_step)

    @property
    def seconds(self) -> float:
        """How long the training has taken, what was lost by a kill not counted."""
        return self.seconds_before + time.monotonic() - self.began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_engine(self.context.engine, self.trainer)
        self.beat()
        checkpoint = self.context.resume_from
        if checkpoint is not None:
            seconds = restore_state(checkpoint, self.trainer, self.context.inputs)
            if seconds is None:
                self.context.reporter.note(f"figures of the end are of the steps after {checkpoint.name} alone")
            self.seconds_before = seconds or 0.0
            compat.replay_order(self.trainer, kwargs["train_dataloader"])
        compat.new_metrics(self.trainer, self.seen)  # what the checkpoint holds is of steps that are written already
        if state.is_world_process_zero:
            self.file = FiguresFile(self.context.folder, state.global_step, self.context.reporter.note)
        self.is_on_gpu = args.device.type == "cuda"
        reset_peak(self.is_on_gpu)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        # each process has the loss of its own rows
        mean = self.loss if self.processes == 1 else self.trainer.accelerator.reduce(self.loss, reduction="mean")
        loss, self.loss = float(mean), None
        self.beat()
        self.own = {"loss": loss, **compat.new_metrics(self.trainer, self.seen), "peak_memory_gib": self._peak()}
        if self.samples:
            self.own["generation_s"], self.generation_s = self.generation_s, 0.0
        if not abs(loss) < float("inf"):
            self._write(state, self.own)  # the step that spoiled it, too
            where = self.context.option_path or f"stages.{self.context.stage}"
            raise NonFiniteLoss(
                f"loss is {loss} at step {state.global_step} of stage '{self.context.stage}'",
                hint=f"lower it: -o {where}.args.learning_rate={args.learning_rate / 10:g}",
            )
        # a step that is logged is shown then, with what the trainer adds (gradient norm, learning rate)
        self.is_shown_by_log = bool(control.should_log)
        if not self.is_shown_by_log:
            self._show(state, self.own)
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

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.beat()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        is_before_end = state.global_step < state.max_steps
        can_go_on = self.can_resume and is_before_end and state.global_step % self.period == 0
        if self.file is not None:
            self.file.sync()
        if can_go_on and folder.is_dir():
            save_state(folder, self.trainer, self.context.inputs, self.seconds)
        if self.processes > 1:  # transformers waits for nobody here: another process may still write its random state
            self.wait_for_everyone()
        if can_go_on and state.is_world_process_zero and folder.is_dir():
            mark_complete(folder)
            for other in folder.parent.glob("checkpoint-*") if self.by_time else ():
                if other != folder:  # those that nobody asked for go, now that there is a newer one
                    shutil.rmtree(other, ignore_errors=True)
        self.beat()
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
        told = {name: float(v) for name, v in (logs or {}).items() if isinstance(v, int | float) and name not in OTHERS}
        if self.is_shown_by_log:
            self.is_shown_by_log = False
            # a line of the log is the mean of the steps since the one before: of one, it is this step, of all processes
            before = next((row["step"] for row in reversed(state.log_history[:-1]) if "loss" in row), 0)
            is_own = before == state.global_step - 1
            self._show(state, {**self.own, **told} if is_own else {**told, **self.own})
        elif self.is_stopped and "train_loss" in told:
            pass  # the summary of a part: the run that goes on would keep it as a figure of this step
        # what a line of another kind says again, such as counts since the last one, is no figure of this step
        elif added := {name: value for name, value in told.items() if name not in self.own.keys() | self.of_step}:
            self.figures |= added
            self._write(state, added)
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.file is not None:
            self.file.sync()

    def _show(self, state: Any, figures: dict[str, float]) -> None:
        self.figures |= figures
        self.of_step = set(figures)
        self._write(state, figures)
        self.context.reporter.progress(state.global_step, state.max_steps, "step", self.figures)

    def _write(self, state: Any, figures: dict[str, float]) -> None:
        if self.file is not None:
            self.file.write(state.global_step, state.max_steps, self.seconds, figures)

    def _peak(self) -> float:
        return round(peak_gib(self.is_on_gpu), 4)

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
