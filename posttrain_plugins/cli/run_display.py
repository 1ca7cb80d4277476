"""Shows a run while it runs: the plan as a table with a live line for the running stage, or plain lines.

On a terminal the table is redrawn in place; into a file or a pipe each event is one line.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from posttrain_plugins.cli.stage_table import StageLine, StageTable
from posttrain_plugins.cli.tables import duration
from posttrain_plugins.errors import Interrupted, WaitsForPerson
from posttrain_plugins.recipe.plan.plan import Plan, PlannedStage
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.pace import LAST, pace
from posttrain_plugins.report.page import clean

__all__ = ["RunDisplay", "quiet_libraries"]

PLAIN_SECONDS = 10.0  # between two lines of a stage, where the output is a file


class RunDisplay(Observer):
    """Observes a run (`posttrain_plugins.recipe.run.observer.Observer`) and shows it on stderr.

    Args:
        console: where to.
        is_quiet: show nothing; errors are printed by others.
    """

    def __init__(self, console: Console, is_quiet: bool = False) -> None:
        self.console = console
        self.is_quiet = is_quiet
        self.rows: dict[str, _StageRow] = {}
        self.live: Live | None = None
        self.shown_notes: dict[str, str] = {}  # message -> its line
        self.size = console.size

    # --- Observer ---------------------------------------------------------------------------------------------------

    def planned(self, plan: Plan) -> None:
        self.rows = {stage.id: _StageRow(stage) for stage in plan.stages if stage.is_wanted}
        if self.is_quiet:
            return
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._draw()
        else:
            runs = [stage.id for stage in plan.stages if stage.must_run]
            self._line(f"{plan.recipe.name}: {len(runs)} of {len(plan.stages)} stages to run")

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        row = self.rows[stage.id]
        row.line.state, row.began = "runs", time.monotonic()
        if resumes_from is not None:
            self.note(stage, f"goes on from {resumes_from.name}")
        self._plain(f"{stage.id}: started ({stage.spec.plugin.name})")

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        row = self.rows[stage.id]
        row.advance(done, total, unit, figures)
        if self.live is not None and self.console.size != self.size:
            self._draw_anew()
        if self.live is None and time.monotonic() - row.printed >= PLAIN_SECONDS:
            row.printed = time.monotonic()
            line = row.now()
            self._plain(f"{stage.id}: {line.place()} {line.text_figures()}")

    def note(self, stage: PlannedStage, message: str) -> None:
        if message not in self.shown_notes:  # once a run: stages of a loop say the same
            self.shown_notes[message] = f"{stage.id}: {message}"
            self._line(self.shown_notes[message], style="yellow")

    def finished(self, stage: PlannedStage, artifact: Artifact, is_cached: bool) -> None:
        line = self.rows[stage.id].line
        # the manifest's: of a cached stage what it took when it ran
        line.state, line.seconds = ("cached" if is_cached else "done"), float(artifact.manifest["seconds"])
        self._plain(f"{stage.id}: " + ("cached" if is_cached else f"done in {duration(line.seconds)}"))

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        line = self.rows[stage.id].line
        line.state, line.why = "stopped" if isinstance(error, Interrupted) else "failed", ""  # the error is told below
        if isinstance(error, WaitsForPerson):
            line.state, line.why = "person", error.decided
            self._plain(error.message)

    def close(self) -> None:
        """Leave the last state of the table on the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None
            self.console.print(self._table())

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        # gone at the end, when `close` prints the last state: nothing is left of what was drawn before it
        # once a second: a frame takes 3 ms, which is more of a short step's time than following it may have
        self.live = Live(get_renderable=self._table, console=self.console, refresh_per_second=1, transient=True)
        self.live.start()

    def _draw_anew(self) -> None:
        """Clear the screen, whose lines the terminal has broken anew, and draw what stood there."""
        assert self.live is not None
        self.size = self.console.size
        self.live.stop()
        self.console.clear()
        for line in self.shown_notes.values():
            self._line(line, style="yellow")
        self._draw()

    def _line(self, text: str, style: str = "") -> None:
        if not self.is_quiet:
            self.console.print(Text(clean(text), style=style))

    def _plain(self, text: str) -> None:
        if self.live is None:
            self._line(text)

    def _table(self) -> StageTable:
        # one line less than there are: the cursor has one, and a frame of all of them scrolls
        rows = self.console.size.height - 1
        return StageTable([row.now() for row in self.rows.values()], rows)


class _StageRow:
    """One stage on the screen."""

    def __init__(self, stage: PlannedStage) -> None:
        self.line = StageLine(stage.id, stage.spec.plugin.name, stage.spec.parents(), why="; ".join(stage.reasons[:1]))
        self.began = self.printed = self.told = time.monotonic()
        self.points: deque[tuple[int, float]] = deque(maxlen=LAST + 1)

    def advance(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        line = self.line
        line.done, line.total, line.unit, line.figures = done, total or 0, unit, dict(figures)
        # the pace counts from the first call: loading the model, and the steps before a resume, are no measure of it
        if not self.points or done != self.points[-1][0]:
            self.points.append((done, time.monotonic()))
        self.told = time.monotonic()

    def now(self) -> StageLine:
        line, now = self.line, time.monotonic()
        if line.state == "runs" and self.points:
            line.pace = pace(list(self.points), line.total, self.told)
            line.quiet_s = line.pace.quiet_s(now) if line.pace else None
        if line.state == "runs":
            line.seconds = now - self.began
        return line


class _DimLines(logging.Handler):
    """Shows each distinct warning of the libraries once, as one dim line above the table."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = next(iter(record.getMessage().strip().splitlines()), "")
        if message and message not in self.shown:
            self.shown.add(message)
            # by the console of the table: written past it, a line would tear the table
            self.console.print(Text(f"{record.name.split('.')[0]}: {message}", style="dim"))


def quiet_libraries(console: Console) -> None:
    """Show one display in place of five: the libraries' warnings become single lines."""
    warnings.simplefilter("ignore")  # those of Python, by the dozen at each import of torch and transformers
    handler = _DimLines(console)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for an optional package at each import
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "torch"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]  # in place of their own, which write to stderr at once
        logger.propagate = False
        logger.setLevel(logging.WARNING)
