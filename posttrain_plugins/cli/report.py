"""The command `report`: the tables of a run, where its page is, and two runs compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posttrain_plugins.cli.options import RUNS, JsonOption, RunsOption, run_folder
from posttrain_plugins.cli.output import err, out

if TYPE_CHECKING:
    from posttrain_plugins.report.compare import Comparison

__all__ = ["report"]


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [OTHER]", help="A run below RUNS_DIR, such as `quickstart`, its folder, or its recipe."
        ),
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the page there: one file that opens offline.")
    ] = None,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Print the tables of a run again, and say where its page is. Of two runs, print what differs and what it changed.

    `posttrain report quickstart quickstart_beta --html compared.html`
    """
    from posttrain_plugins.errors import InputError

    if len(runs) > 2:
        raise InputError(f"{len(runs)} runs are named, expected one, or two to compare", hint="posttrain report A B")
    folders = [run_folder(name, runs_dir) for name in runs]
    if len(runs) == 1:
        _report_one(folders[0], html, as_json)
    else:
        _report_two((folders[0], folders[1]), (runs[0], runs[1]), html, as_json)


def _report_one(folder: Path, html: Path | None, as_json: bool) -> None:
    from posttrain_plugins.cli.runs import print_results
    from posttrain_plugins.record.runs import read_run
    from posttrain_plugins.report.run_page import REPORT, RunPage

    run = read_run(folder)
    if html is not None:
        _write(html, RunPage(folder).html())
    print_results(run.name, run.artifacts, as_json)
    page = html or folder / REPORT
    if page.is_file():
        err().print(f"page: {page}", style="dim", highlight=False, soft_wrap=True)
    else:
        hint = f"no page yet: posttrain report {run.name} --html {REPORT}"
        err().print(hint, style="dim", highlight=False, soft_wrap=True)


def _report_two(folders: tuple[Path, Path], names: tuple[str, str], html: Path | None, as_json: bool) -> None:
    from posttrain_plugins.record.runs import read_run
    from posttrain_plugins.report.compare import compare, told_apart
    from posttrain_plugins.report.compare_page import compare_page

    names = told_apart(names)
    found = compare(read_run(folders[0]), read_run(folders[1]), names)
    if html is not None:
        _write(html, compare_page(folders, names))
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _print_comparison(found)
    if html is not None:
        err().print(f"page: {html}", style="dim", highlight=False, soft_wrap=True)


def _print_comparison(found: Comparison) -> None:
    from posttrain_plugins.cli.tables import changes_table, comparison_table, remade_table
    from posttrain_plugins.report.compare import headline

    console = out()
    console.print(headline(found), highlight=False, soft_wrap=True)
    for title, changes in (("recipe", found.recipe), ("versions", found.versions)):
        if changes:
            console.print(changes_table(title, changes, (found.a, found.b)))
    if found.remade:
        console.print(remade_table(found.remade))
    for name, stages in ((found.a, found.only_a), (found.b, found.only_b)):
        if stages:
            console.print(f"only {name} has {', '.join(stages)}", highlight=False, markup=False)
    if found.measured:
        console.print(comparison_table(found))
    for note in found.notes:
        console.print(note, style="yellow", highlight=False, markup=False)


def _write(file: Path, page: str) -> None:
    from posttrain_plugins.errors import InputError
    from posttrain_plugins.report.page import write_whole

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, page)
    except OSError as error:
        raise InputError(
            f"the page cannot be written: {file}: {error.strerror}", hint="choose another: --html FILE"
        ) from error
