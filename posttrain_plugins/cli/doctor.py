"""`posttrain doctor`: what will not work here, and the command that mends it."""

from __future__ import annotations

import json

import typer

from posttrain_plugins.cli.consoles import err, out, quiet
from posttrain_plugins.cli.options import RUNS, JsonOption, RunsOption

__all__ = ["doctor"]

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "broken": ("broken", "bold red")}


def doctor(runs_dir: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """Look at Python, packages, GPU, quantization, vLLM, sandbox, disk, Hub and plugins. Exit 1 if something is broken.

    `posttrain doctor`

    `posttrain doctor --json > doctor.json` for a bug report. Nothing is downloaded.
    """
    quiet(err())
    from posttrain_plugins.doctor import examine

    findings = examine(runs_dir)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        from rich.table import Table
        from rich.text import Text

        table = Table(header_style="bold")
        for name in ("", "what", "found", "mend it with"):
            table.add_column(name, overflow="fold")
        for finding in findings:
            word, style = MARKS[finding.status]
            table.add_row(Text(word, style=style), Text(finding.what), Text(finding.found), Text(finding.hint))
        out().print(table)
    if any(finding.status == "broken" for finding in findings):
        raise typer.Exit(1)
