"""Shows a run while it runs: the plan as a table with a live line for the running stage, or plain lines.

On a terminal the table is redrawn in place; into a file or a pipe each event is one line.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from posttrain_plugins.cli.progress_bar import figures_text
from posttrain_plugins.cli.tables import duration
from posttrain_plugins.errors import Interrupted, WaitsForPerson
from posttrain_plugins.recipe.plan.plan import Plan, PlannedStage
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.artifact import Artifact

__all__ = ["RunDisplay", "quiet_libraries"]

PLAIN_SECONDS = 10.0  # between two lines of a stage, where the output is a file
# the first three of these that a stage has: what a terminal has room for beside the bar
SHOWN_FIGURES = ("reward", "loss", "rewards/accuracies", "accuracy", "kl", "eval_accuracy")


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
        self.shown_notes: set[str] = set()

    # --- Observer ---------------------------------------------------------------------------------------------------

    def planned(self, plan: Plan) -> None:
        self.rows = {stage.id: _StageRow(stage) for stage in plan.stages if stage.is_wanted}
        if self.is_quiet:
            return
        if self.console.is_terminal:
            # gone at the end, when `close` prints the last state: nothing is left of what was drawn before it
            self.live = Live(get_renderable=self._table, console=self.console, refresh_per_second=8, transient=True)
            self.live.start()
        else:
            runs = [stage.id for stage in plan.stages if stage.must_run]
            self._line(f"{plan.recipe.name}: {len(runs)} of {len(plan.stages)} stages to run")

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        row = self.rows[stage.id]
        row.state, row.began = "runs", time.monotonic()
        if resumes_from is not None:
            self.note(stage, f"goes on from {resumes_from.name}")
        self._plain(f"{stage.id}: started ({stage.spec.plugin.name})")

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        row = self.rows[stage.id]
        row.advance(done, total, unit, figures)
        if self.live is None and time.monotonic() - row.printed >= PLAIN_SECONDS:
            row.printed = time.monotonic()
            self._plain(f"{stage.id}: {row.place()} {row.text_figures()}")

    def note(self, stage: PlannedStage, message: str) -> None:
        if message not in self.shown_notes:  # once a run: stages of a loop say the same
            self.shown_notes.add(message)
            self._line(f"{stage.id}: {message}", style="yellow")

    def finished(self, stage: PlannedStage, artifact: Artifact, is_cached: bool) -> None:
        row = self.rows[stage.id]
        # the manifest's: of a cached stage what it took when it ran
        row.state, row.seconds = ("cached" if is_cached else "done"), float(artifact.manifest["seconds"])
        self._plain(f"{stage.id}: " + ("cached" if is_cached else f"done in {duration(row.seconds)}"))

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        row = self.rows[stage.id]
        row.state = "stopped" if isinstance(error, Interrupted) else "failed"
        if isinstance(error, WaitsForPerson):
            row.state, row.decided = "person", error.decided
            self._plain(error.message)

    def close(self) -> None:
        """Leave the last state of the table on the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None
            self.console.print(self._table())

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _line(self, text: str, style: str = "") -> None:
        if not self.is_quiet:
            self.console.print(Text(text, style=style))

    def _plain(self, text: str) -> None:
        if self.live is None:
            self._line(text)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for row in self.rows.values():
            table.add_row(*row.cells())
        return table


class _StageRow:
    """One stage on the screen."""

    MARKS: ClassVar[dict[str, str]] = {
        "done": "[green]✓",
        "cached": "[green]✓",
        "failed": "[red]✗",
        "stopped": "[yellow]■",
        "person": "[yellow]?",
        "waits": "[dim]·",
    }

    def __init__(self, stage: PlannedStage) -> None:
        self.stage = stage
        self.state = "waits"
        self.done, self.total, self.unit = 0, 0, "step"
        self.first_done = 0
        self.began = self.printed = time.monotonic()
        self.progress_began: float | None = None
        self.seconds = 0.0
        self.decided = ""
        self.figures: dict[str, float] = {}

    def advance(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        if self.progress_began is None:
            # the pace counts from here: loading the model, and the steps before a resume, are no measure of it
            self.progress_began, self.first_done = time.monotonic(), done
        self.done, self.total, self.unit = done, total or 0, unit
        self.figures = dict(figures)

    def place(self) -> str:
        left = ""
        if self.progress_began is not None and self.first_done < self.done < self.total:
            pace = (time.monotonic() - self.progress_began) / (self.done - self.first_done)
            left = f", {duration(pace * (self.total - self.done))} left"
        return f"{self.unit} {self.done}/{self.total or '?'}{left}"

    def text_figures(self) -> str:
        shown = [f"{name} {self.figures[name]:.3g}" for name in SHOWN_FIGURES if name in self.figures][:3]
        return " ".join(shown) or figures_text(self.figures)

    def cells(self) -> list[Any]:
        spec = self.stage.spec
        mark: Any = Spinner("dots") if self.state == "runs" else Text.from_markup(self.MARKS[self.state])
        origin = " ← " + ", ".join(spec.parents()) if spec.parents() else ""
        name = Text.assemble((spec.id, "bold" if self.state == "runs" else ""), (origin, "dim"))
        # a stage that has not said how much there is has no bar
        has_bar = self.state == "runs" and self.total
        bar = ProgressBar(total=self.total, completed=self.done, width=24) if has_bar else Text("")
        return [mark, name, Text(spec.plugin.name, style="cyan"), bar, self._status()]

    def _status(self) -> Text:
        if self.state == "runs":
            elapsed = duration(time.monotonic() - self.began)
            return Text(f"{self.place()}  {self.text_figures()}" if self.total else f"loading, {elapsed}")
        if self.state == "waits":
            return Text(self.stage.reasons[0] if self.stage.reasons else "", style="dim")
        if self.state == "person":
            return Text(f"waits for a person: {self.decided}", style="yellow")
        if self.state == "done":
            return Text(f"{duration(self.seconds)}  {self.text_figures()}")
        return Text(self.state, style="dim")


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
