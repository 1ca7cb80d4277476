"""Runs a plan with its display, and prints the results."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from posttrain_plugins.cli.output import err, out, quiet
from posttrain_plugins.errors import Interrupted

if TYPE_CHECKING:
    from posttrain_plugins.recipe.plan.plan import Plan
    from posttrain_plugins.record.artifact import Artifact

__all__ = ["print_results", "run_and_show"]


def run_and_show(chosen: Plan, as_json: bool, measured: str | None = None) -> None:
    """Run what must run, with the display on stderr, then print the tables or the JSON.

    Args:
        chosen: the plan.
        as_json: print JSON and nothing else.
        measured: the one model that the plan measures, as the user named it; then only the figures are shown.
    """
    from posttrain_plugins.cli.run_display import RunDisplay
    from posttrain_plugins.recipe.run.observer import Several
    from posttrain_plugins.recipe.run.run import run_plan
    from posttrain_plugins.report.live import LiveReport

    display = RunDisplay(err(), is_quiet=as_json)
    page = LiveReport(lambda message: err().print(message, style="yellow", highlight=False, markup=False))
    if any(stage.must_run for stage in chosen.stages):  # if all is cached, no library is imported
        quiet(display.console)
    try:
        # rewards and trainers may print, which would spoil the JSON
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            finished = run_plan(chosen, Several(display, page))
    except Interrupted as stop:  # the checkpoint is saved: only the command that goes on is missing from the message
        hint = f"go on with the same command: {_command()}"
        raise Interrupted(stop.message, hint, stop.exit_code - 128) from None
    finally:
        display.close()
        page.close()
    print_results(chosen.recipe.name, finished.artifacts, as_json, measured)
    if as_json:
        return
    from posttrain_plugins.record.lineage import evaluations

    console = err()
    console.print(f"results: {chosen.store.folder}", highlight=False, style="dim", soft_wrap=True)
    if page.file is not None and page.file.is_file():
        console.print(f"  {page.file}", highlight=False, style="dim", soft_wrap=True)
    for artifact in evaluations(finished.artifacts):
        for name in ("summary.json", "samples.jsonl", "accuracy_tokens.svg", "accuracy_tokens.png", "proxy_gold.svg"):
            if (artifact.folder / name).is_file():  # the plots need an extra, and one strategy makes none
                console.print(f"  {artifact.folder / name}", highlight=False, style="dim", soft_wrap=True)


def print_results(name: str, artifacts: Mapping[str, Artifact], as_json: bool, measured: str | None = None) -> None:
    """Print the tables of a run, or the same as JSON."""
    from posttrain_plugins.record.lineage import evaluations
    from posttrain_plugins.record.results import rows
    from posttrain_plugins.report.results_json import results_json

    if as_json:
        print(json.dumps(results_json(name, artifacts), indent=1))
        return
    from posttrain_plugins.cli.tables import at_k_table, evaluation_table, result_table, retained_table

    console = out()
    if measured is None:  # `evaluate` has one stage, of which the table of results says less than its own
        console.print(result_table(rows(artifacts), name))
    for artifact in evaluations(artifacts):
        details = artifact.details
        title = f"{measured or artifact.manifest['stage']}: {details['metric']} on {details['problems']} problems"
        console.print(evaluation_table(details, title))
        for table in (at_k_table(details), retained_table(details)):
            if table is not None:
                console.print(table)


def _command() -> str:
    """Return the command that goes on: the same, without `--force`, which would begin the stage again."""
    kept: list[str] = []  # by hand: what is parsed has lost how it was written
    given = iter(sys.argv[1:])
    for argument in given:
        if argument == "--force":
            next(given, None)
        elif not argument.startswith("--force="):
            kept.append(argument)
    return shlex.join(["posttrain", *kept])
