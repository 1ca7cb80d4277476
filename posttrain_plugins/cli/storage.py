"""What lies in the runs folder (`posttrain runs`): listed, shown, verified, pruned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain_plugins.cli.lazy import CommandGroup
from posttrain_plugins.cli.options import RUNS, JsonOption, RunsOption
from posttrain_plugins.cli.output import err, out

if TYPE_CHECKING:
    from posttrain_plugins.record.storage import Stored

__all__ = ["runs_app", "runs_list", "runs_prune", "runs_show", "runs_verify"]

runs_app = CommandGroup(
    {
        "list": "storage:runs_list",
        "show": "storage:runs_show",
        "verify": "storage:runs_verify",
        "prune": "storage:runs_prune",
    },
    name="runs",
    help="What lies in the runs folder, and how large it is.\n\n"
    "Make room:  posttrain runs prune          (shows what would go; --yes takes it away)",
    no_args_is_help=True,
)
NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="These runs; all by default.")]


def runs_list(runs_dir: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """List the runs: stages, bytes, what could go, and when the newest stage was done.

    `posttrain runs list --runs-dir /data/runs`
    """
    from rich.table import Table

    found = _stored(runs_dir, None)
    rows = [_row(name, [one for one in found if one.run == name]) for name in dict.fromkeys(one.run for one in found)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(header_style="bold")
    for name, where in (("run", "left"), ("stages", "right"), ("results", "right"), ("begun", "right")):
        table.add_column(name, justify=where)  # type: ignore[arg-type]
    for name in ("size", "unused", "newest"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = [str(row[name]) for name in ("stages", "results", "begun")]
        table.add_row(row["run"], *figures, _bytes(row["bytes"]), _bytes(row["prunable_bytes"]), row["newest"] or "")
    out().print(table)


def runs_show(names: NamesArgument = None, runs_dir: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """Show each stage's folders: size, whether it is the latest, and what needs it.

    `posttrain runs show quickstart`
    """
    from rich.table import Table
    from rich.text import Text

    found = _stored(runs_dir, names)
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=1))
        return
    table = Table(header_style="bold")
    for name in ("run", "stage", "key", "state"):
        table.add_column(name, overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("needed by", overflow="fold")
    styles = {"latest": "green", "needed": "green", "unused": "yellow", "begun": "cyan", "left over": "yellow"}
    for one in found:
        state = Text(one.use, style=styles[one.use])
        table.add_row(one.run, one.stage, one.key[:12], state, _bytes(one.size), ", ".join(one.needed_by))
    out().print(table)


def runs_verify(names: NamesArgument = None, runs_dir: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """Read every file of the finished stages again and compare its hash with the manifest's; exit 1 where one differs.

    `posttrain runs verify quickstart`
    """
    from posttrain_plugins.record.storage import FILES, changes_of

    finished = [one for one in _stored(runs_dir, names) if one.manifest]
    changed = {one.folder: list(changes_of(one.folder, one.manifest)) for one in finished}
    unknown = [one for one in finished if FILES not in one.manifest]
    bad = {folder: told for folder, told in changed.items() if told}
    if as_json:
        found = {str(folder): told for folder, told in bad.items()}
        print(json.dumps({"verified": len(finished) - len(unknown), "changed": found}, indent=1))
    else:
        for folder, told in bad.items():
            for line in told:
                out().print(f"{folder}: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
        older = f", {len(unknown)} have no hashes: an earlier version made them" if unknown else ""
        whole = len(finished) - len(bad) - len(unknown)
        out().print(f"{whole} of {len(finished)} stages are as they were made{older}", highlight=False)
    if bad:
        err().print("hint: make them again: posttrain run RECIPE --force STAGE", highlight=False)
        raise typer.Exit(1)


def runs_prune(
    names: NamesArgument = None,
    yes: Annotated[bool, typer.Option("--yes", help="Take it away; without this, nothing is.")] = False,
    begun: Annotated[
        bool, typer.Option("--begun", help="Also what was begun: checkpoints and answers are lost with it.")
    ] = False,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Take away results that nothing needs: not the latest of their stage, and nothing that is kept was made from them.

    `posttrain runs prune --yes`
    """
    from posttrain_plugins.errors import StageFailed
    from posttrain_plugins.recipe.plan.store import Store

    uses = {"unused", "left over"} | ({"begun"} if begun else set())
    going = [one for one in _stored(runs_dir, names) if one.use in uses]
    gone: list[Stored] = []
    for one in going if yes else ():
        try:
            # under the stage's lock: what is being made at this moment stays
            with Store(runs_dir, one.run).locked(one.stage, one.key) as partial:
                if not any(partial.iterdir()):
                    partial.rmdir()
                shutil.rmtree(one.folder, ignore_errors=True)
            gone.append(one)
        except StageFailed as busy:
            err().print(f"kept: {one.folder}: {busy.message}", highlight=False, soft_wrap=True)
    told = gone if yes else going
    if as_json:
        print(json.dumps({"removed": yes, "folders": [one.to_json() for one in told]}, indent=1))
        return
    for one in told:
        out().print(f"{_bytes(one.size):>9}  {one.use:9}  {one.folder}", markup=False, highlight=False, soft_wrap=True)
    total = _bytes(sum(one.size for one in told))
    out().print(f"{len(told)} folders, {total} taken away" if yes else f"{len(told)} folders, {total} would go: --yes")


def _row(name: str, own: Sequence[Stored]) -> dict[str, Any]:
    return {
        "run": name,
        "stages": len({one.stage for one in own if one.manifest}),
        "results": sum(bool(one.manifest) for one in own),
        "bytes": sum(one.size for one in own),
        "prunable_bytes": sum(one.size for one in own if one.use in ("unused", "left over")),
        "begun": sum(one.use == "begun" for one in own),
        "newest": max((one.finished for one in own), default="") or None,
    }


def _stored(runs_dir: Path, names: Sequence[str] | None) -> list[Stored]:
    from posttrain_plugins.errors import InputError
    from posttrain_plugins.record.storage import stored

    found = stored(runs_dir)
    known = sorted({one.run for one in found})
    for name in names or ():
        if name not in known:
            raise InputError(f"no run '{name}' below {runs_dir}", hint=f"runs there: {', '.join(known) or 'none'}")
    return [one for one in found if not names or one.run in names]


def _bytes(count: int) -> str:
    """Write a size as `512 B`, `1.5 MB`, `16 GB`.

    Example:
        >>> _bytes(512), _bytes(1_500_000), _bytes(16_000_000_000)
        ('512 B', '1.5 MB', '16 GB')
    """
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
