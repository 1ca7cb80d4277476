"""What `posttrain watch` shows of a run: its stages, curves of the one at work, what looks ill, and what it writes.

All from files, whatever process wrote them. Texts of models are shown, never obeyed: no markup, and what would move the
cursor is written out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from posttrain_plugins.cli.sparkline import sparkline
from posttrain_plugins.cli.stage_table import StageLine, StageTable
from posttrain_plugins.cli.tables import duration
from posttrain_plugins.record.artifact import read_manifest
from posttrain_plugins.record.figures import StepFigures
from posttrain_plugins.record.health import Verdict, health
from posttrain_plugins.record.pace import LAST, Pace, pace
from posttrain_plugins.record.rollouts import Newest, newest
from posttrain_plugins.record.runs import RunRecord, StageRecord
from posttrain_plugins.report.page import clean
from posttrain_plugins.text import to_text

__all__ = ["RunView", "curves_of", "stage_line", "stopped_at"]

CELLS = 30
STATES = {"planned": "waits", "running": "runs", "waiting": "person"}
TEXT_CHARS = 2000  # of a completion; a terminal has room for less


def curves_of(lines: Sequence[StepFigures]) -> dict[str, list[float]]:
    """Return the loss and each reward over the steps, NaN where a step has none."""
    names = dict.fromkeys(name for line in lines for name in line.figures)
    rewards = [n for n in names if n == "reward" or (n.startswith("rewards/") and not n.endswith(RATHER_NOT))]
    shown = [name for name in ("loss", *rewards) if name in names]
    return {name: [line.figures.get(name, float("nan")) for line in lines] for name in shown}


RATHER_NOT = ("/std", "/ok", "/none", "/timeout", "/error", "/non_finite", "/chosen", "/rejected")
"""What trainers and guards log of a reward beside its mean."""


def stage_line(stage: StageRecord, run: RunRecord, lines: Sequence[StepFigures], now: float) -> StageLine:
    """Return a stage as a line of the table.

    Args:
        stage: of the run.
        run: the whole.
        lines: its figures, where it trains.
        now: the time, in seconds since 1970.
    """
    state = STATES.get(stage.state, stage.state)
    line = StageLine(stage.id, stage.use, stage.parents, state, why="; ".join(stage.reasons[:1]))
    line.done, line.total, line.unit = stage.done, stage.total or 0, stage.unit or "step"
    line.figures = stage.metrics or stage.shown
    if lines:
        line.done, line.total, line.unit = lines[-1].step, lines[-1].total or line.total, "step"
        # the newest of each: a step without a generation has no reward
        line.figures = {name: value for one in lines[-LAST:] for name, value in one.figures.items()}
    line.seconds = float(stage.manifest.get("seconds", 0.0)) if stage.manifest else now - (stage.began or now)
    if stage.state == "running":
        line.pace = _pace(stage, run, lines)
        line.quiet_s = line.pace.quiet_s(now) if line.pace else None
    elif stage.state == "waiting":
        line.why = (stage.message or "").rpartition(": ")[2]
    elif stage.state in ("failed", "stopped"):
        line.why = stopped_at(stage, lines) + (f": {stage.message}" if stage.state == "failed" else "")
    return line


def stopped_at(stage: StageRecord, lines: Sequence[StepFigures]) -> str:
    """Say how far a stage came that does not run any more, and where the same command goes on."""
    done = lines[-1].step if lines else stage.done
    at = f"at {stage.unit or 'step'} {done}" if done else "before its first step"
    if not lines:
        return f"{at}, the same command goes on" if done else at
    return f"{at}, goes on from {stage.checkpoint}" if stage.checkpoint else f"{at}, starts anew"


def _pace(stage: StageRecord, run: RunRecord, lines: Sequence[StepFigures]) -> Pace | None:
    """Return the pace by the figures of a training, which count no seconds that a kill has cost, else by its events."""
    last = lines[-LAST - 1 :]
    if last and last[-1].seconds is not None and last[-1].at is not None:
        return pace([(line.step, line.seconds or 0.0) for line in last], last[-1].total, last[-1].at)
    told = [event for event in run.events if event["event"] == "progress" and event["stage"] == stage.id]
    points = [(event["done"], event["at"]) for event in told]
    return pace(points, stage.total, points[-1][1]) if points else None


@dataclass(frozen=True)
class RunView:
    """A run as the terminal shows it.

    Args:
        run: as read.
        lines: the figures of the stage that is looked at.
        has_completions: show what it writes, too.
        rows: how many lines there may be; None for no limit.
        now: the time, in seconds since 1970.
    """

    run: RunRecord
    lines: Sequence[StepFigures]
    has_completions: bool = False
    rows: int | None = None
    now: float = 0.0

    @staticmethod
    def focus(run: RunRecord) -> StageRecord | None:
        """Return the stage to look at: the one at work, or that broke; else the last that trained."""
        wanted = [stage for stage in run.stages if stage.is_wanted]
        active = [stage for stage in wanted if stage.state in ("running", "failed", "stopped", "waiting")]
        return active[-1] if active else None

    @classmethod
    def of(cls, run: RunRecord, has_completions: bool = False, rows: int | None = None) -> RunView:
        """Read what is needed beside the run itself."""
        stage = cls.focus(run)
        return cls(run, list(stage.figures()) if stage else [], has_completions, rows, time.time())

    def stage_lines(self) -> list[StageLine]:
        """Return a line for each stage that the run was asked for."""
        stage = self.focus(self.run)
        wanted = [one for one in self.run.stages if one.is_wanted]
        return [stage_line(one, self.run, self.lines if one is stage else (), self.now) for one in wanted]

    def headline(self) -> str:
        """Return the run in one line: state, how much is done, how long it takes."""
        found = self.stage_lines()
        done = sum(line.state in ("done", "cached") for line in found)
        cached = sum(line.state == "cached" for line in found)
        parts = [f"{done} of {len(found)} stages done" + (f" ({cached} cached)" if cached else "")]
        left = self._left(found)
        if left is not None and self.run.state == "running":
            parts.append(f"about {duration(left)} left")
        if self.run.state == "running" and (host := self.run.planned.get("host")):
            parts.append(f"{host}, pid {self.run.planned.get('pid')}")
        return clean(f"{self.run.name}: {self.run.state}, {', '.join(parts)}")

    def verdicts(self) -> list[Verdict]:
        """Return what looks ill in the stage that is looked at."""
        return [verdict for verdict in health(self.lines) if verdict.state != "ok"]

    def _left(self, found: Sequence[StageLine]) -> float | None:
        """Return the seconds to the end of the run, where all that is to come has run before, if otherwise."""
        total = 0.0
        for line in found:
            if line.state == "runs":
                if line.pace is None or line.pace.left_s is None:
                    return None
                total += line.pace.left_s
            elif line.state == "waits":
                before = read_manifest(self.run.folder / "latest" / line.id)
                if before is None:
                    return None
                total += float(before["seconds"])
        return total

    # --- drawing -----------------------------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        found = self.stage_lines()
        parts = [list(self._curves(width)), list(self._health()), list(self._completions(width))]
        room = self.rows
        if room is None:
            table_rows = len(found)
        else:
            # the stages have a third at least, and three lines (what is folded above and below) where there are seven
            least = max(3 if room >= 7 else 1, (room - 1) // 3)
            table_rows = min(len(found), max(least, room - 1 - sum(map(len, parts))))
            room -= 1 + table_rows
            if self.has_completions:
                parts[0] = parts[0][: max(1, room // 2)]
        yield Text(self.headline(), style="bold", no_wrap=True, overflow="ellipsis")
        yield StageTable(found, table_rows)
        for part in parts:
            shown = part if room is None else part[: max(0, room)]
            room = room and room - len(shown)
            yield from shown

    def _curves(self, width: int) -> Iterator[Text]:
        curves = {name: values for name, values in curves_of(self.lines).items() if any(v == v for v in values)}
        longest = max((len(name) for name in curves), default=0)
        for name, values in curves.items():
            known = [value for value in values if value == value]
            told = f" {known[-1]:.3g} ({min(known):.3g} to {max(known):.3g})"
            label = clean(name).removesuffix("/mean").ljust(min(longest, width // 3))[: max(8, width // 3)]
            cells = max(4, min(CELLS, width - len(label) - len(told) - 4))
            line = Text.assemble(("   " + label + " "), (sparkline(values, cells), "cyan"), told)
            line.no_wrap, line.overflow = True, "ellipsis"
            yield line

    def _health(self) -> Iterator[Text]:
        for verdict in self.verdicts():
            style = "red" if verdict.state == "bad" else "yellow"
            yield Text(f"   {verdict.state}: {clean(str(verdict))}", style=style, no_wrap=True, overflow="ellipsis")

    def _completions(self, width: int) -> Iterator[Text]:
        stage = self.focus(self.run)
        file = stage.rollouts if stage and self.has_completions else None
        found = newest(file) if file else None
        if found is None:
            if self.has_completions:
                yield Text("   no completions yet", style="dim")
            return
        yield Text(f"   sampled after step {found.step}, {len(found.rows)} completions", style="dim", no_wrap=True)
        for title, row in chosen(found):
            scores = " ".join(f"{name} {_score(value)}" for name, value in (row.get("rewards") or {}).items())
            head = Text.assemble((f"   {title}", "bold"), clean(f" {_score(row.get('weighted_reward'))}  {scores}"))
            head.no_wrap, head.overflow = True, "ellipsis"
            yield head
            text = clean(as_text(row.get("completion"))[:TEXT_CHARS]).replace("\t", "\\t").replace("\n", "\\n")
            yield Text(f"     {text}", no_wrap=True, overflow="ellipsis")


def chosen(found: Newest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the newest completions that tell most: the best, the worst, the last, and one whose prompt came before."""
    judged = [row for row in found.rows if isinstance(row.get("weighted_reward"), int | float)]
    if judged:
        yield "best", max(judged, key=lambda row: row["weighted_reward"])
        yield "worst", min(judged, key=lambda row: row["weighted_reward"])
    yield "newest", found.rows[-1]
    for then, now in islice(found.pairs(), 1):
        yield f"changed: after step {then.get('global_step')}", then
        yield f"changed: after step {found.step}", now


def as_text(completion: Any) -> str:
    """Return a completion as text, whatever somebody has put there."""
    try:
        return to_text(completion)
    except (TypeError, KeyError, ValueError, AttributeError):
        return str(completion)


def _score(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "none"
