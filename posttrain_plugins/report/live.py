"""Keeps `report.html` of a run up to date while it works, at a cost that the run does not feel. No paper."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from posttrain_plugins.recipe.plan.plan import Plan, PlannedStage
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.report.page import write_whole
from posttrain_plugins.report.run_page import REPORT, RunPage

__all__ = ["LiveReport"]

SECONDS = 10.0
COST_FACTOR = 200  # so that it takes half a percent of a run at most


class LiveReport(Observer):
    """Observes a run and writes its page, each time whole; what goes wrong with that is told once, and the run goes on.

    Args:
        note: is told why the page is not written.
        clock: seconds that pass.
        spent: seconds that this thread has worked.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self.note_error = note
        self.clock = clock
        self.spent = spent
        self.page: RunPage | None = None
        self.next = self.clock() + SECONDS
        self.has_worked = False

    @property
    def file(self) -> Path | None:
        """Where the page is, once a run is known."""
        return self.page.folder / REPORT if self.page is not None else None

    def planned(self, plan: Plan) -> None:
        self.page = RunPage(plan.store.folder)

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        self.has_worked = True
        self._changed()

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        self._changed()

    def finished(self, stage: PlannedStage, artifact: Artifact, is_cached: bool) -> None:
        self._changed()

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        self._changed()

    def close(self) -> None:
        """Write the page as the run has ended; of one that found all done, the page of before stands."""
        if self.has_worked or (self.file is not None and not self.file.is_file()):
            self._write()

    def _changed(self) -> None:
        if self.clock() >= self.next:
            self._write()

    def _write(self) -> None:
        if self.page is None:
            return
        began = self.spent()
        try:
            write_whole(self.page.folder / REPORT, self.page.html())
        except Exception as cause:
            # Whatever is wrong with a page, a disk or a bug of ours, no training ends because of it.
            self.note_error(f"{REPORT} is not written: {type(cause).__name__}: {cause}")
            self.page = None
            return
        self.next = self.clock() + max(SECONDS, COST_FACTOR * (self.spent() - began))
