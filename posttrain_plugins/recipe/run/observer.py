"""Who sees a run: the terminal's display, a test, and the file `run.jsonl`. No paper."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from posttrain_plugins.errors import Interrupted, PosttrainError, WaitsForPerson
from posttrain_plugins.recipe.plan.plan import Plan, PlannedStage
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.events import EventFile

__all__ = ["Observer", "Recorded", "Several"]


class Observer:
    """Who sees a run; this one says nothing. The CLI's display is another."""

    def planned(self, plan: Plan) -> None:
        """Called once, before anything runs."""

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        """Called when a stage begins, with the checkpoint that it goes on from."""

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        """Called often while a stage runs; see `Reporter.progress`."""

    def note(self, stage: PlannedStage, message: str) -> None:
        """Called with a line that the user should read."""

    def finished(self, stage: PlannedStage, artifact: Artifact, is_cached: bool) -> None:
        """Called when a stage's artifact stands."""

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        """Called when a stage has raised."""


class Several(Observer):
    """Tells several observers, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def planned(self, plan: Plan) -> None:
        for one in self.observers:
            one.planned(plan)

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        for one in self.observers:
            one.started(stage, resumes_from)

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        for one in self.observers:
            one.progress(stage, done, total, unit, figures)

    def note(self, stage: PlannedStage, message: str) -> None:
        for one in self.observers:
            one.note(stage, message)

    def finished(self, stage: PlannedStage, artifact: Artifact, is_cached: bool) -> None:
        for one in self.observers:
            one.finished(stage, artifact, is_cached)

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        for one in self.observers:
            one.failed(stage, error)


class Recorded(Observer):
    """Writes what happens into `run.jsonl`, then tells another.

    Args:
        observer: the other.
    """

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.events: EventFile | None = None
        self.root = Path()

    def planned(self, plan: Plan) -> None:
        self.observer.planned(plan)
        self.root = plan.store.folder
        stages = [
            {
                **stage.to_json(),
                "id": stage.id,
                "start": stage.spec.start,
                "wanted": stage.is_wanted,
                "folder": self._relative(stage.artifact) if stage.artifact else None,
            }
            for stage in plan.stages
        ]
        first = plan.stages[0]
        note = self.observer.note
        self.events = EventFile(self.root, plan.recipe.name, stages, lambda message: note(first, message))

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        self._write("started", stage, key=stage.key, resumed_from=resumes_from and resumes_from.name)
        self.observer.started(stage, resumes_from)

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        if self.events is not None:
            self.events.progress(stage.id, done=done, total=total, unit=unit, figures=dict(figures))
        self.observer.progress(stage, done, total, unit, figures)

    def note(self, stage: PlannedStage, message: str) -> None:
        self._write("note", stage, message=message)
        self.observer.note(stage, message)

    def finished(self, stage: PlannedStage, artifact: Artifact, is_cached: bool) -> None:
        self._write("finished", stage, cached=is_cached, folder=self._relative(artifact))
        self.observer.finished(stage, artifact, is_cached)

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        waits = error.decided if isinstance(error, WaitsForPerson) else None
        self._write("failed", stage, **_told(error), stopped=_is_wish(error), waits=waits)
        self.observer.failed(stage, error)

    def ended(self, error: BaseException | None) -> None:
        """Write how the run ended, and close the file."""
        if self.events is not None:
            self.events.write("ended", state=_end(error), **_told(error))
            self.events.close()

    def _write(self, event: str, stage: PlannedStage, **values: object) -> None:
        if self.events is not None:
            self.events.write(event, stage=stage.id, **values)

    def _relative(self, artifact: Artifact) -> str:
        return os.path.relpath(artifact.folder, self.root)  # so that a runs folder can be moved


def _end(error: BaseException | None) -> str:
    if isinstance(error, WaitsForPerson):
        return "waiting"
    return "done" if error is None else "stopped" if _is_wish(error) else "failed"


def _is_wish(error: BaseException) -> bool:
    return isinstance(error, Interrupted | KeyboardInterrupt)


def _told(error: BaseException | None) -> dict[str, str | None]:
    """Return message and hint of an error; of one that is not ours, its class with it."""
    if isinstance(error, PosttrainError):
        return {"message": error.message, "hint": error.hint}
    return {"message": f"{type(error).__name__}: {error}".removesuffix(": ") if error else None, "hint": None}
