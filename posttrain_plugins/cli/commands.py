"""The commands of `posttrain`. Each parses, calls one function of `api` or `recipe`, and prints.

Exit codes: 0 done, 1 the run failed, 2 your input is wrong, 3 a gate was not met, 4 a person has to decide before it
goes on, 130 stopped by you, 143 by SIGTERM, 138 by SIGUSR1. Messages go to stderr, data to stdout; `--json` where a
program reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain_plugins.cli.lazy import CommandGroup
from posttrain_plugins.cli.output import print_error
from posttrain_plugins.errors import PosttrainError

__all__ = ["app", "main"]


COMMANDS = {
    "run": "recipes:run",
    "validate": "recipes:validate",
    "plan": "recipes:plan",
    "watch": "watch:watch",
    "report": "report:report",
    "runs": "storage:runs_app",
    "annotate": "annotate:annotate",
    "evaluate": "evaluate:evaluate",
    "ask": "ask:ask",
    "serve": "serve:serve",
    "schema": "schema:schema",
    "doctor": "doctor:doctor",
    "plugins": "plugins:plugins_app",
    "rewards": "rewards:rewards_app",
}
"""Name -> `module:attr` of this room."""


class Commands(CommandGroup):
    """The group as typer makes it, which has no commands to give."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(COMMANDS, **attributes)


app = typer.Typer(
    name="posttrain",
    cls=Commands,
    help="Post-train language models by recipe: SFT, reward models, DPO, GRPO and test-time strategies, on TRL.\n\n"
    "Start with:  posttrain run quickstart\n\n"
    "With --debug after any command an error shows its whole traceback.",
    no_args_is_help=True,
    add_completion=False,  # two options more in every --help, for what few install
    pretty_exceptions_enable=False,  # our own errors are one line; a bug's traceback belongs into a report whole
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        # from the metadata: the package itself has no version to import
        from importlib.metadata import version

        print(f"posttrain-plugins {version('posttrain-plugins')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the whole program."""


def main() -> None:
    """Run the command line, and turn our errors into a message and an exit code."""
    # taken out by hand, so that it may stand after any command without being an option of each
    is_debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app(prog_name="posttrain")  # for `python -m posttrain_plugins` too, whose usage lines would name a file
    except PosttrainError as error:
        print_error(error, is_debug)
        raise SystemExit(error.exit_code) from None  # nothing but our errors: any other is a bug, and shows itself
    except OSError as cause:
        from posttrain_plugins.recipe.run.full_disk import full_disk

        full = full_disk(cause, Path.cwd())
        if full is None:
            raise
        print_error(full, is_debug)
        raise SystemExit(full.exit_code) from None
