"""The commands of `posttrain`. Each parses, calls one function of `api` or `recipe`, and prints.

Exit codes: 0 done, 1 the run failed, 2 your input is wrong, 3 a gate was not met, 130 stopped by you. Messages go to
stderr, data to stdout; `--json` where a program reads.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from posttrain_plugins.cli.ask import ask
from posttrain_plugins.cli.doctor import doctor
from posttrain_plugins.cli.evaluate import evaluate
from posttrain_plugins.cli.options import RUNS, CommandGroup, JsonOption, OverrideOption, RecipeArgument, RunsOption
from posttrain_plugins.cli.output import out, print_error, quiet
from posttrain_plugins.cli.plugins import plugins_app
from posttrain_plugins.cli.rewards import rewards_app
from posttrain_plugins.cli.runs import print_results, run_and_show
from posttrain_plugins.cli.schema import schema
from posttrain_plugins.cli.serve import serve
from posttrain_plugins.errors import PosttrainError

__all__ = ["app", "main"]

app = typer.Typer(
    name="posttrain",
    cls=CommandGroup,
    help="Post-train language models by recipe: SFT, reward models, DPO, GRPO and test-time strategies, on TRL.\n\n"
    "Start with:  posttrain run quickstart\n\n"
    "With --debug after any command an error shows its whole traceback.",
    no_args_is_help=True,
    add_completion=False,  # two options more in every --help, for what few install
    pretty_exceptions_enable=False,  # our own errors are one line; a bug's traceback belongs into a report whole
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(plugins_app, name="plugins")
app.add_typer(rewards_app, name="rewards")


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


@app.command()
def run(
    recipe: RecipeArgument,
    override: OverrideOption = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run only this stage (repeatable).")] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage again (repeatable).")] = None,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe. What is done already is not done again; Ctrl-C saves a checkpoint, the same command goes on.

    Results stand in `RUNS_DIR/<recipe>/<stage>-<key>/`, and `latest/<stage>` points to the newest.

    `posttrain run quickstart -o stages.dpo.args.beta=0.2 --until dpo`
    """
    from posttrain_plugins import api

    run_and_show(
        api.plan(recipe, override or [], runs_dir=runs_dir, until=until, only=only or [], force=force or []), as_json
    )


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files, or names of packaged ones.")],
    override: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check recipes: every mistake at once, each with file:line:column. Loads no model; takes about a second.

    `posttrain validate mine.yaml lora --json`
    """
    from posttrain_plugins import api
    from posttrain_plugins.errors import RecipeErrors

    found: list[dict[str, Any]] = []
    for name in recipes:
        try:
            checked = api.validate(name, override or [])
            if not as_json:
                ids = [stage.id for stage in checked.stages]
                print(f"{name}: fine, {len(ids)} stage{'s' if len(ids) != 1 else ''}: {', '.join(ids)}")
        except RecipeErrors as errors:  # and goes on: all recipes that were named are checked in one call
            found += [vars(mistake) for mistake in errors.mistakes]
            if not as_json:
                print_error(errors, False)
    if as_json:
        print(json.dumps({"mistakes": found}, indent=1))
    if found:
        raise typer.Exit(2)


@app.command()
def plan(
    recipe: RecipeArgument,
    override: OverrideOption = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also show which tokens carry loss, for a few rows.")] = False,
    rows: Annotated[int, typer.Option(min=2, help="How many rows of each stage `--masks` shows.")] = 2,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Show what would run, what is cached, and why the rest is not; and what each stage trains on top of what.

    With `--masks` also what each training stage learns from, as TRL prepares it, and where EOS is never learned.

    `posttrain plan quickstart -o stages.sft.args.learning_rate=1e-3`
    """
    from posttrain_plugins import api

    chosen = api.plan(recipe, override or [], runs_dir=runs_dir)
    if masks:
        quiet()
    shown = api.masks(chosen, rows) if masks else {}  # before anything is printed: it may refuse, and it takes seconds
    if as_json:
        found = [stage.to_json() | ({"masks": shown[stage.id]} if stage.id in shown else {}) for stage in chosen.stages]
        print(json.dumps(found, indent=1))
        return
    from posttrain_plugins.cli.tables import footing_table, plan_table, warnings_of

    out().print(plan_table(chosen))
    if any(stage.starting_point for stage in chosen.stages):
        out().print(footing_table(chosen))
    if shown:
        from posttrain_plugins.cli.loss_masks import print_masks

        print_masks(out(), shown)
    for warning in warnings_of(chosen):
        out().print(warning, style="yellow", highlight=False, soft_wrap=True)


@app.command()
def report(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The name of a run below RUNS_DIR, such as `quickstart`.")],
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Print the tables of a run again, from what stands below RUNS_DIR.

    `posttrain report quickstart --json`
    """
    from posttrain_plugins.errors import InputError
    from posttrain_plugins.recipe.plan.store import Store

    store = Store(runs_dir.resolve(), name)
    artifacts = store.all_latest()
    if not artifacts:
        known = sorted(p.parent.name for p in runs_dir.glob("*/latest"))
        raise InputError(f"no run '{name}' below {runs_dir}", hint=f"runs there: {', '.join(known) or 'none'}")
    print_results(name, artifacts, as_json)


app.command()(evaluate)
app.command()(ask)
app.command()(serve)
app.command()(schema)
app.command()(doctor)
