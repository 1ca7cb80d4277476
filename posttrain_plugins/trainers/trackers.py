"""Trackers (`report_to`): a run of its own for each stage, told by a thread that no training waits for. No paper.

transformers' own callbacks talk to TensorBoard, trackio, wandb and the others. Called by the training itself, a service
that is down stops it, and all stages of a process end in the first one's run. Here each tracker has a thread that calls
them; the training puts a call into a queue, with copies of what it changes later, and goes on. At its end a stage waits
for its trackers, `PATIENCE_S` for all together.

A run is named `recipe/stage-key12`, and its project is the recipe. TensorBoard's events lie in the stage's folder,
trackio's and wandb's files in the recipe's. A stage that goes on from a checkpoint goes on in the same run, and is not
told again what the tracker has: resuming changes no figure.
"""

from __future__ import annotations

import contextlib
import copy
import os
import queue
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import PLUGIN_FAILURES
from posttrain_plugins.trainers import compat
from posttrain_plugins.types import StageContext

__all__ = ["PATIENCE_S", "follow_trackers", "take_trackers"]

PATIENCE_S = 10.0
"""What a stage waits at its end, for all trackers together."""

MOST_WAITING = 1000
"""Calls that wait for a slow tracker; more are left out, so that they cannot fill the memory."""

THREAD = "tracker {}"
WITH_ROWS = ("wandb", "trackio", "mlflow")  # TRL's trainers give them completions and times, past the callbacks


def take_trackers(context: StageContext, config: Any) -> list[str]:
    """Return the trackers that a trainer's config asks for and leave it none, so that the trainer is built without.

    Args:
        context: of the stage.
        config: TRL's; its runs are named, unless the recipe does so.
    """
    names = list(config.report_to or ())
    if names:
        config.run_name = config.run_name or context.artifact_name
        if "project" not in context.args:
            config.project = context.folder.parent.name
    config.report_to = []
    return names


@contextlib.contextmanager
def follow_trackers(context: StageContext, trainer: Any, names: Sequence[str]) -> Iterator[None]:
    """Tell trackers what a trainer logs within; an error of theirs is a note, and they change nothing of the training.

    Args:
        context: of the stage.
        trainer: one that was built without trackers.
        names: in transformers' words, such as `tensorboard`.
    """
    if not names or not trainer.is_world_process_zero():
        yield
        return
    from transformers import TrainerCallback

    # one that hung in the stage before still has its thread, and in it the one run that its module can have
    hanging = {thread.name for thread in threading.enumerate()}
    trackers = [_Tracker(name, context, trainer) for name in names if THREAD.format(name) not in hanging]
    for name in {*names} - {tracker.name for tracker in trackers}:
        context.reporter.note(f"tracker '{name}' still does not answer: this stage goes without it")

    trainer.args.report_to = [tracker.name for tracker in trackers]  # TRL asks it where it makes a table for one

    def forward(event: str) -> Callable[..., None]:
        def call(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for tracker in trackers:
                tracker.tell(event, state, **kwargs)

        return call

    # its end is told when the stage has evaluated and saved, since what comes after it would begin another run
    events = [name for name in dir(TrainerCallback) if name.startswith("on_") and name != "on_train_end"]
    trainer.add_callback(type("Trackers", (TrainerCallback,), {event: forward(event) for event in events})())
    modules = {tracker.name: _Module(tracker) for tracker in trackers if tracker.name in WITH_ROWS}
    has_failed = True
    try:
        with compat.modules_as(trainer, modules):
            yield
        has_failed = False
    finally:
        until = time.monotonic() + PATIENCE_S
        for tracker in trackers:
            tracker.end(has_failed)
        for tracker in trackers:
            tracker.join(until)


class _Tracker:
    """One tracker of one stage: its thread, and the calls that wait for it."""

    def __init__(self, name: str, context: StageContext, trainer: Any) -> None:
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        self.name, self.context, self.trainer, self.args = name, context, trainer, trainer.args
        self.folder = context.folder
        self.kind = INTEGRATION_TO_CALLBACK.get(name)
        self.calls: queue.Queue[tuple[str, Any, dict[str, Any]] | bool] = queue.Queue(MOST_WAITING)
        self.trouble = ""
        self.is_told = False
        # a daemon: what hangs must not keep the process
        self.thread = threading.Thread(target=self._work, name=THREAD.format(name), daemon=True)
        self.thread.start()

    def tell(self, event: str, state: Any, **kwargs: Any) -> None:
        """Put a call into the queue, where the tracker listens to it."""
        self._show_trouble()
        is_heard = event == "row" or getattr(self.kind, event, None) is not getattr(_plain_callback(), event, None)
        if not is_heard or not self.thread.is_alive():
            return
        kept = {name: value for name, value in kwargs.items() if name in ("logs", "metrics", "row", "options")}
        # copies, since the training goes on; and a weak reference, since one that hangs would keep the model in memory
        kept = {name: dict(value) if isinstance(value, dict) else value for name, value in kept.items()}
        if (
            event == "on_train_begin"
        ):  # what the checkpoint knows: a thread that was behind when it was killed lost some
            kept["history"] = list(state.log_history)
        if kwargs.get("model") is not None:
            kept["model"] = weakref.proxy(kwargs["model"])
        try:
            self.calls.put_nowait((event, copy.copy(state), kept))
        except queue.Full:
            self.trouble = self.trouble or f"{MOST_WAITING} calls behind, it misses what comes now"

    def end(self, has_failed: bool) -> None:
        """Let the tracker finish its run."""
        self.tell("on_train_end", self.trainer.state, model=self.trainer.model)
        with contextlib.suppress(queue.Full):
            self.calls.put_nowait(has_failed)

    def join(self, until: float) -> None:
        """Wait for it until a time of the monotonic clock, and note what went wrong."""
        self.thread.join(max(0.0, until - time.monotonic()))
        if self.thread.is_alive():
            self.trouble = f"no answer within {PATIENCE_S:g} s: what it had not taken by then, it misses"
            self.is_told = False
        self._show_trouble()

    def _show_trouble(self) -> None:
        # by the training's thread: nobody promises that two may write to a display
        if self.trouble and not self.is_told:
            self.is_told = True
            self.context.reporter.note(f"tracker '{self.name}': {self.trouble}; the training is as without it")

    def _work(self) -> None:
        try:
            with RUNS.get(self.name, _any_other)(self) as had:
                from transformers.integrations.integration_utils import get_reporting_integration_callbacks

                callback = get_reporting_integration_callbacks([self.name])[0]()
                if self.name == "tensorboard":
                    callback.logging_dir = str(_events_of(self))
                while not isinstance(call := self.calls.get(), bool):
                    self._call(callback, had, *call)
                if call:
                    raise _StageFailed
        except _StageFailed:
            return
        except BaseException as cause:  # of foreign code, in a thread of its own: there is nobody above to tell
            self.trouble = self.trouble or _told(cause)

    def _call(self, callback: Any, had: _Had, event: str, state: Any, kwargs: dict[str, Any]) -> None:
        from transformers.integrations.integration_utils import rewrite_logs

        step, history = state.global_step, kwargs.pop("history", [])
        try:
            if event == "row":
                module = import_module(self.name)
                row = {name: v.make(module) if isinstance(v, _Table) else v for name, v in kwargs["row"].items()}
                if step > had.last:
                    module.log(row, **kwargs["options"])
                return
            if event == "on_log":
                logs = kwargs["logs"]
                kwargs["logs"] = {name: v for name, v in logs.items() if not had(step, *rewrite_logs({name: v}))}
                if not kwargs["logs"]:
                    return
                had.mark(step)
            getattr(callback, event)(self.args, state, copy.copy(self.trainer.control), **kwargs)
        except PLUGIN_FAILURES as cause:  # the next figure may reach it again
            self.trouble = self.trouble or _told(cause)
        for row in history:
            then = copy.copy(state)
            then.global_step = row["step"]
            self._call(callback, had, "on_log", then, {"logs": {k: v for k, v in row.items() if k != "step"}})


class _StageFailed(Exception):
    """Within the thread: the stage did not end well, and so does its run."""


def _told(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


def _plain_callback() -> Any:
    from transformers import TrainerCallback

    return TrainerCallback


# --- what TRL says past the callbacks ---------------------------------------------------------------------------------


@dataclass
class _Table:
    """A table that the tracker's thread makes."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def make(self, module: Any) -> Any:
        return module.Table(*self.args, **self.kwargs)


class _Module:
    """What stands for a tracker's module where TRL would call it itself."""

    run = "of another thread"  # TRL asks whether there is one

    def __init__(self, tracker: _Tracker) -> None:
        self._tracker = tracker

    def active_run(self) -> None:
        """Say that MLflow has none: what TRL's parts took is all that it would be told."""

    def Table(self, *args: Any, **kwargs: Any) -> _Table:  # noqa: N802 wandb's and trackio's name
        return _Table(args, kwargs)

    def log(self, row: Mapping[str, Any], **options: Any) -> None:
        self._tracker.tell("row", self._tracker.trainer.state, row=dict(row), options=options)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._tracker.name), name)


# --- runs -------------------------------------------------------------------------------------------------------------


class _Had:
    """What a tracker has of a run that goes on.

    Args:
        figures: step and name of each, where it can be asked.
        file: where the steps that it was given are written, where it cannot.
    """

    def __init__(self, figures: set[tuple[int, str]] | None = None, file: Path | None = None) -> None:
        self.figures, self.file = figures, file
        self.last = max((step for step, _ in figures or ()), default=-1)
        if file is not None and file.is_file():
            self.last = int(file.read_text())

    def __call__(self, step: int, name: str) -> bool:
        return step <= self.last if self.figures is None else (step, name) in self.figures

    def mark(self, step: int) -> None:
        # before it is told: of a kill in between, a step that is missing is better than one that is there twice
        if self.file is not None:
            beside = self.file.with_name(f"{self.file.name}.new")
            beside.write_text(str(step))
            beside.replace(self.file)


@contextlib.contextmanager
def _any_other(tracker: _Tracker) -> Iterator[_Had]:
    yield _Had(file=tracker.folder / f".told-{tracker.name}")


@contextlib.contextmanager
def _tensorboard(tracker: _Tracker) -> Iterator[_Had]:
    """Read what the events in the folder hold."""
    folder = _events_of(tracker)
    figures: set[tuple[int, str]] = set()
    if any(folder.glob("events.out.tfevents.*")):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        figures = {(event.step, name) for name in found.Tags()["scalars"] for event in found.Scalars(name)}
    yield _Had(figures)


def _events_of(tracker: _Tracker) -> Path:
    """Return the stage's folder, so that `--logdir runs` names the run as it is called, or one below the user's own."""
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    return Path(given).expanduser() / tracker.context.artifact_name if given else tracker.folder


@contextlib.contextmanager
def _trackio(tracker: _Tracker) -> Iterator[_Had]:
    """Put its database beside the recipe's stages, and ask it; on a Space or a server it cannot be asked."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    home = tracker.folder.parent / "trackio"
    # it reads the variable once, as it is imported, which TRL may have done long ago
    is_chosen = "TRACKIO_DIR" in os.environ
    with contextlib.nullcontext() if is_chosen else _paths_below(trackio.utils.TRACKIO_DIR, home.absolute()):
        args = tracker.args
        is_remote = args.trackio_space_id or {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & {*os.environ}
        if is_remote:
            yield _Had(file=tracker.folder / ".told-trackio")
        else:
            rows = SQLiteStorage.get_logs(args.project, run=args.run_name)
            yield _Had({(row["train/global_step"], name) for row in rows if "train/global_step" in row for name in row})


@contextlib.contextmanager
def _paths_below(old: Path, new: Path) -> Iterator[None]:
    """Within, every path that trackio's modules hold leads below another folder."""
    new.mkdir(parents=True, exist_ok=True)
    changed = [
        (module, name, value)
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] == "trackio"
        for name, value in list(vars(module).items())
        if isinstance(value, Path) and value.is_relative_to(old)
    ]
    for module, name, value in changed:
        setattr(module, name, new / value.relative_to(old))
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


@contextlib.contextmanager
def _wandb(tracker: _Tracker) -> Iterator[_Had]:
    """Begin the run before transformers' callback does, which takes what it finds and never finishes it."""
    wandb = import_module("wandb")  # a user's own install, unknown to our type checker
    name = tracker.context.artifact_name
    had = _Had(file=tracker.folder / ".told-wandb")
    if wandb.run is not None:  # the user's own, begun before: it is theirs to finish
        yield had
        return
    wandb.init(
        project=os.environ.get("WANDB_PROJECT", tracker.args.project),
        name=tracker.args.run_name,
        id=re.sub(r"[^\w-]", "-", name)[-64:],  # the same when the stage goes on
        group=tracker.folder.parent.name,
        resume="allow",
        dir=os.environ.get("WANDB_DIR", str(tracker.folder.parent)),
    )
    try:
        yield had
    except BaseException:
        wandb.finish(exit_code=1)
        raise
    wandb.finish()


RUNS: Mapping[str, Callable[[_Tracker], contextlib.AbstractContextManager[_Had]]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}
"""How each is opened, by name: the run's place, and what it has of the steps."""
