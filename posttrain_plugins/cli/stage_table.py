"""The stages of a run as lines of a terminal, in this process or another: never more lines than there is room for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from posttrain_plugins.cli.progress_bar import figures_text
from posttrain_plugins.cli.tables import duration
from posttrain_plugins.record.pace import Pace
from posttrain_plugins.report.page import clean

__all__ = ["StageLine", "StageTable", "place"]

# the first three of these that a stage has: what a terminal has room for beside the bar
SHOWN_FIGURES = ("reward", "loss", "rewards/accuracies", "accuracy", "kl", "eval_accuracy")
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
WIDE_COLUMNS = 100  # below, a line has no bar; below the next, no plugin
MIDDLE_COLUMNS = 64


@dataclass
class StageLine:
    """A stage as a line shows it.

    Args:
        id: in the recipe.
        use: its plugin.
        parents: what it is made from.
        state: `waits`, `runs`, `done`, `cached`, `failed`, `stopped`, or `person`: waits for one.
        why: why it runs, or what ended it.
        done: how far it is.
        total: of how many; 0 where it has not said.
        unit: of these.
        figures: the newest.
        seconds: how long it has taken.
        pace: of its last steps.
        quiet_s: for how long there was no step, if that is longer than usual.
    """

    MARKS: ClassVar[dict[str, tuple[str, str]]] = {
        "done": ("✓", "green"),
        "cached": ("✓", "green"),
        "failed": ("✗", "red"),
        "stopped": ("■", "yellow"),
        "person": ("?", "yellow"),
        "waits": ("·", "dim"),
    }

    id: str
    use: str
    parents: Sequence[str] = ()
    state: str = "waits"
    why: str = ""
    done: int = 0
    total: int = 0
    unit: str = "step"
    figures: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    pace: Pace | None = None
    quiet_s: float | None = None

    def status(self) -> Text:
        """Return how it stands, in a few words."""
        if self.state == "runs":
            told = f"{self.place()}  {self.text_figures()}" if self.total else f"loading, {duration(self.seconds)}"
            if self.quiet_s is None or self.pace is None:
                return Text(told)
            usual = f"(median {duration(self.pace.median_s)})"
            return Text.assemble((f"no {self.unit} for {duration(self.quiet_s)} {usual}", "yellow"), f"  {told}")
        if self.state == "done":
            return Text(f"{duration(self.seconds)}  {self.text_figures()}")
        if self.state == "person":
            return Text(f"waits for a person: {clean(self.why)}", style="yellow")
        if self.state in ("failed", "stopped"):
            return Text(clean(f"{self.state}: {self.why}" if self.why else self.state).replace("\n", " "))
        return Text(clean(self.why if self.state == "waits" else self.state).replace("\n", " "), style="dim")

    def place(self) -> str:
        """Return how far it is and what is left."""
        left = f", {duration(self.pace.left_s)} left" if self.pace and self.pace.left_s is not None else ""
        return place(self.done, self.total, self.unit) + left

    def text_figures(self) -> str:
        """Return the figures that tell most."""
        known = {name: value for name, value in self.figures.items() if value is not None}
        shown = [f"{name} {known[name]:.3g}" for name in SHOWN_FIGURES if name in known][:3]
        return " ".join(shown) or figures_text(known)


def place(done: int, total: int | None, unit: str) -> str:
    """Write `step 12/60`."""
    return f"{clean(unit)} {done}/{total or '?'}"


@dataclass(frozen=True)
class StageTable:
    """Draws a line a stage; where there are too many, those that are done fold into one, and those to come.

    Args:
        lines: the stages.
        rows: how many lines there may be.
    """

    lines: Sequence[StageLine]
    rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        above, shown, below = self.folded()
        table = Table(box=None, pad_edge=False, show_header=False, width=width)
        columns = 5 if width >= WIDE_COLUMNS else 4 if width >= MIDDLE_COLUMNS else 3
        for i in range(columns):
            # a line that breaks would be two; the names give way last
            is_last = i == columns - 1
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if is_last else None, min_width=1 if i else 2)
        if above:
            cached = sum(line.state == "cached" for line in above)
            told = f"{len(above)} stages done" + (f", {cached} of them cached" if cached else "")
            yield Text.assemble(("✓", "green"), (f"  {told}", "dim"), no_wrap=True, overflow="ellipsis")
        for line in shown:
            table.add_row(*self._cells(line, columns, width))
        yield table
        if below:
            yield Text(f"·  {len(below)} stages to come", style="dim", no_wrap=True, overflow="ellipsis")

    def folded(self) -> tuple[Sequence[StageLine], Sequence[StageLine], Sequence[StageLine]]:
        """Return what stands folded above, line by line, and folded below; what runs or broke is in the middle."""
        rows = max(1, self.rows)
        if len(self.lines) <= rows:
            return (), self.lines, ()
        active = [i for i, line in enumerate(self.lines) if line.state in ("runs", "failed", "stopped", "person")]
        waits = next((i for i, line in enumerate(self.lines) if line.state == "waits"), len(self.lines) - 1)
        at = active[-1] if active else waits
        for has_above, has_below in ((1, 0), (0, 1), (1, 1)):
            size = max(1, rows - has_above - has_below)
            first = min(max(0, at - (size - 1) // 2), len(self.lines) - size)
            last = first + size
            if bool(first) <= has_above and (last < len(self.lines)) <= has_below:
                break
        if rows < 3:  # no room for what is folded
            return (), self.lines[at : at + 1], ()
        return self.lines[:first], self.lines[first:last], self.lines[last:]

    def _cells(self, line: StageLine, columns: int, width: int) -> list[Any]:
        # by the clock: a frame is drawn anew each time, and a spinner of rich's would begin anew with it
        turning = SPINNER[int(8 * time.monotonic()) % len(SPINNER)]
        mark = Text(turning) if line.state == "runs" else Text(*line.MARKS[line.state])
        origin = " ← " + ", ".join(line.parents) if line.parents and columns > 3 else ""
        name = Text.assemble((clean(line.id), "bold" if line.state == "runs" else ""), (clean(origin), "dim"))
        name.truncate(max(8, width // 3), overflow="ellipsis")
        cells: list[Any] = [mark, name]
        if columns > 3:
            cells.append(Text(clean(line.use), style="cyan"))
        if columns > 4:
            # a stage that has not said how much there is has no bar
            has_bar = line.state == "runs" and line.total
            cells.append(ProgressBar(total=line.total, completed=line.done, width=24) if has_bar else Text(""))
        return [*cells, line.status()]
