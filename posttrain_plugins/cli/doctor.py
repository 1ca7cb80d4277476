"""Prints what will not work here, and the command that mends it (`posttrain doctor`)."""

from __future__ import annotations

import contextlib
import json
import sys

import typer

from posttrain_plugins.cli.options import RUNS, JsonOption, RunsOption
from posttrain_plugins.cli.output import err, out, quiet

__all__ = ["doctor"]

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "broken": ("broken", "bold red")}


def doctor(runs_dir: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """Look at Python, packages, GPU, quantization, vLLM, sandbox, disk, Hub and plugins. Exit 1 if something is broken.

    `posttrain doctor`

    `posttrain doctor --json > doctor.json` for a bug report. Nothing is downloaded.
    """
    quiet(err())  # it imports torch and bitsandbytes, whose greetings would stand above the table
    from posttrain_plugins.doctor import examine

    with contextlib.redirect_stdout(sys.stderr):  # some libraries greet as they are imported
        diagnoses = examine(runs_dir)
    if as_json:
        print(json.dumps([vars(one) for one in diagnoses], indent=1))
    else:
        from rich.table import Table
        from rich.text import Text

        table = Table(header_style="bold")
        for name in ("", "what", "found", "mend it with"):
            table.add_column(name, overflow="fold")
        for one in diagnoses:
            word, style = MARKS[one.status]
            table.add_row(Text(word, style=style), Text(one.what), Text(one.found), Text(one.hint))
        out().print(table)
    if any(one.status == "broken" for one in diagnoses):
        raise typer.Exit(1)
