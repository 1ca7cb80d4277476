"""The command `watch`: a run from another terminal, while it works, after it was killed, and when it is done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain_plugins.cli.options import RUNS, JsonOption, RunsOption, run_folder
from posttrain_plugins.cli.output import out

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain_plugins.cli.watch_view import RunView
    from posttrain_plugins.record.runs import RunRecord

__all__ = ["watch"]

SECONDS = 1.0  # between two looks; more where reading takes long, so that this is a twentieth of the time at most
PLAIN_SECONDS = 10.0  # between two lines of a stage, where the output is a file
SHARE = 20.0


def watch(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run below RUNS_DIR, such as `quickstart`, its folder, or its recipe."),
    ],
    completions: Annotated[
        bool, typer.Option("--completions", help="Also show what the model writes: newest, best, worst, changed.")
    ] = False,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Look at a run from another terminal: how far it is, its curves, what looks ill, and what the model writes.

    It reads files and touches nothing: the run neither waits for it nor knows of it. Of a run that was killed it shows
    where it stands; of one that is done the same as `report`. Ctrl-C ends the look, not the run.

    `posttrain watch quickstart --completions`
    """
    from posttrain_plugins.cli.watch_view import RunView
    from posttrain_plugins.record.runs import read_run

    folder = run_folder(run, runs_dir)
    found = read_run(folder)
    if as_json:
        print(json.dumps(to_json(RunView.of(found)), indent=1))
    elif found.state == "done":
        _report(found)
    elif found.state == "running":
        try:
            _follow(folder, completions)
        except KeyboardInterrupt:
            return
    else:
        out().print(RunView.of(found, completions))
        _hint(found)


def to_json(view: RunView) -> dict[str, Any]:
    """Return what the view shows, for a program."""
    stages = []
    for line in view.stage_lines():
        own = {"stage": line.id, "use": line.use, "state": line.state, "done": line.done, "total": line.total}
        pace = line.pace
        own |= {"unit": line.unit, "seconds": line.seconds, "figures": dict(line.figures), "why": line.why}
        own |= {"median_s": pace and pace.median_s, "left_s": pace and pace.left_s, "quiet_s": line.quiet_s}
        stages.append(own)
    verdicts = [vars(verdict) for verdict in view.verdicts()]
    return {"recipe": view.run.name, "state": view.run.state, "stages": stages, "health": verdicts}


def _report(found: RunRecord) -> None:
    from posttrain_plugins.cli.runs import print_results

    print_results(found.name, found.artifacts, as_json=False)


def _hint(found: RunRecord) -> None:
    command = found.planned.get("command")
    if command:
        from rich.text import Text

        from posttrain_plugins.report.page import clean

        out().print(Text(f"go on with the same command: {clean(command)}", style="dim"), soft_wrap=True)


def _follow(folder: Path, completions: bool) -> None:
    console = out()
    if console.is_terminal and not console.is_dumb_terminal:
        _draw(console, folder, completions)
    else:
        _print_lines(console, folder, completions)


def _draw(console: Console, folder: Path, completions: bool) -> None:
    """Redraw until the run has ended, then leave its last state on the screen."""
    from rich.live import Live

    from posttrain_plugins.cli.watch_view import RunView
    from posttrain_plugins.record.runs import read_run

    def view() -> RunView:
        return RunView.of(read_run(folder), completions, console.size.height - 1)

    # on a screen of its own: where it is resized a terminal breaks lines anew, and what was drawn in place is torn
    with Live(view(), console=console, auto_refresh=False, screen=True) as live:
        while True:
            began = time.thread_time()
            now = view()
            live.update(now, refresh=True)
            if now.run.state != "running":
                break
            time.sleep(max(SECONDS, SHARE * (time.thread_time() - began)))
    _end(console, now)


def _print_lines(console: Console, folder: Path, completions: bool) -> None:
    """Print a line for what has changed, for a pipe or a terminal that cannot redraw."""
    from rich.text import Text

    from posttrain_plugins.cli.watch_view import RunView
    from posttrain_plugins.record.runs import read_run

    now = RunView.of(read_run(folder), completions)
    console.print(now)
    console.file.flush()  # a program that reads the pipe wants each line when it is written
    before = {line.id: line.state for line in now.stage_lines()}
    printed = time.monotonic()
    while now.run.state == "running":
        time.sleep(SECONDS)
        now = RunView.of(read_run(folder), completions)
        lines = now.stage_lines()
        is_due = time.monotonic() - printed >= PLAIN_SECONDS
        for line in lines:
            if line.state != before.get(line.id) or (is_due and line.state == "runs"):
                before[line.id], printed = line.state, time.monotonic()
                console.print(Text.assemble(f"{line.id}: ", f"{line.state}  " * (line.state != "runs"), line.status()))
                console.file.flush()
    _end(console, now)


def _end(console: Console, now: RunView) -> None:
    if now.run.state == "done":
        _report(now.run)
    else:
        console.print(now)
        _hint(now.run)
