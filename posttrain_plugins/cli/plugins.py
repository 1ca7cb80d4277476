"""Lists, shows, checks and writes plugins (`posttrain plugins`)."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from posttrain_plugins.cli.lazy import CommandGroup
from posttrain_plugins.cli.options import JsonOption
from posttrain_plugins.cli.output import err, out, quiet

__all__ = ["plugins_app", "plugins_check", "plugins_list", "plugins_new", "plugins_show", "print_plugins"]

NARROW = 120  # columns; below that, a row of its own for each summary

plugins_app = CommandGroup(
    {
        "list": "plugins:plugins_list",
        "show": "plugins:plugins_show",
        "check": "plugins:plugins_check",
        "new": "plugins:plugins_new",
    },
    name="plugins",
    help="The installed plugins: rewards, adapters, strategies, data sets, stages.\n\n"
    "A first one of your own:  posttrain plugins new reward short_answers",
    no_args_is_help=True,
)
NameArgument = Annotated[str, typer.Argument(help="A name, `distribution:name`, `module:attr` or `./file.py:attr`.")]
KindOption = Annotated[str | None, typer.Option(help="reward, adapter, strategy, dataset, stage or tool.")]


def plugins_list(kind: KindOption = None, as_json: JsonOption = False) -> None:
    """List every plugin with its package, version and status; a broken one with its cause.

    `posttrain plugins list --kind strategy`
    """
    from posttrain_plugins.recipe.describe import catalogue

    rows = catalogue.listing(kind)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print_plugins(rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def print_plugins(rows: Sequence[Mapping[str, str]], width: int | None) -> None:
    """Print one row a plugin, of a broken one the cause in place of the summary; two lines each if it is narrow.

    Args:
        rows: see `catalogue.listing`.
        width: of the terminal, in characters; None breaks no line.
    """
    # by hand: to import and draw a table of rich's takes longer than all the rest of `plugins list`
    names = ("kind", "name", "distribution", "version", "status")
    head = {name: name for name in names} | {"summary": "what"}
    widths = {name: max(len(row[name]) for row in (head, *rows)) for name in names}
    for row in (head, *rows):
        lead = "  ".join(row[name].ljust(widths[name]) for name in names)
        is_fine = row["status"] in ("ok", "status")
        what = row["summary"] if is_fine else row["cause"]
        indent = 4 if width and width < NARROW else len(lead) + 2
        lines = textwrap.wrap(what, max(width - indent, 20)) if width else [what]
        text = f"\n{'':{indent}}".join(lines)
        between = "\n    " if indent == 4 else "  "
        click.secho(f"{lead}{between}{text}".rstrip(), fg=None if is_fine else "red", bold=row is head)


def plugins_show(name: NameArgument, kind: KindOption = None, as_json: JsonOption = False) -> None:
    """Show one plugin: what it does, its parameters with types and defaults, needed columns, and where it lives.

    `posttrain plugins show best_of_n`
    """
    from posttrain_plugins.recipe.describe import catalogue

    found = catalogue.show(name, kind)  # several where kinds share a name
    if as_json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=1, default=str))
        return
    from posttrain_plugins.cli.tables import print_plugin

    for one in found:
        print_plugin(out(), one)


def plugins_check(
    name: Annotated[str | None, typer.Argument(help="As for `show`.")] = None,
    all_of_them: Annotated[bool, typer.Option("--all", help="Every installed plugin.")] = False,
    kind: KindOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the conformance kit on a plugin, or on all: what every plugin of its kind must do. Exit 1 where one fails.

    `posttrain plugins check short_answers`

    `posttrain plugins check ./my_reward.py:Brevity --kind reward`

    Each check's reason: `python -c "help('posttrain_plugins.testing.rewards')"`. Known failures are declared on the
    plugin with a reason, `expected_failures = {"check_both_formats": "..."}`.
    """
    from posttrain_plugins.errors import InputError
    from posttrain_plugins.recipe.describe import catalogue

    if (name is None) != all_of_them:
        raise InputError("which plugins? Give a name, or --all", hint="posttrain plugins check length")
    quiet(err())  # before the kit is imported: it loads torch, transformers and peft
    from posttrain_plugins.testing import run_checks

    chosen = catalogue.chosen(name, kind)  # several where kinds share a name
    found: list[dict[str, Any]] = []
    for plugin in chosen:
        # as the user named it; of `--all` with its package, since two may give one name
        outcomes = run_checks(plugin.kind, name or f"{plugin.distribution}:{plugin.name}")
        found.append({"kind": plugin.kind, "name": plugin.name, "checks": [vars(outcome) for outcome in outcomes]})
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from posttrain_plugins.cli.tables import print_checks

        print_checks(out(), found, is_long=name is not None)
    if any(check["status"] == "failed" for row in found for check in row["checks"]):
        raise typer.Exit(1)


def plugins_new(
    kind: Annotated[str, typer.Argument(help="reward, adapter, strategy, dataset, stage or tool.")],
    name: Annotated[str, typer.Argument(help="What recipes will call it, such as `short_answers`.")],
    into: Annotated[Path, typer.Option(help="Where its folder is made.")] = Path(),
) -> None:
    """Write a package with one plugin that works at once: entry point, recipe, conformance test. Overwrites nothing.

    `posttrain plugins new reward short_answers`

    then `pip install -e posttrain-short-answers`, `posttrain plugins check short_answers` and
    `posttrain run short_answers`; and write what it is to do into `src/`.
    """
    from posttrain_plugins.plugins.scaffold import new_plugin

    written = new_plugin(kind, name, into)
    for file in written:  # to stdout, for a program; what comes next is for people
        print(file)
    folder = written[0].parent
    steps = (f"pip install -e {folder}", f"posttrain plugins check {name}", f"posttrain run {name}")
    err().print("\nnext:\n" + "\n".join(f"  {step}" for step in steps), highlight=False, soft_wrap=True)
