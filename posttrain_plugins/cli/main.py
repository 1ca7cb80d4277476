"""`posttrain`: the commands. Each parses, calls one function of `api` or `recipe`, and prints.

Exit codes: 0 done, 1 the run failed, 2 your input is wrong, 3 a gate was not met, 130 stopped by you. Messages go to
stderr, data to stdout; `--json` where a program reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain_plugins.errors import Interrupted, PosttrainError, StageFailed

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app", "main"]

app = typer.Typer(
    name="posttrain",
    help="Post-train language models by recipe: SFT, reward models, DPO, GRPO and test-time strategies, on TRL.\n\n"
    "Start with:  posttrain run quickstart\n\n"
    "With --debug after any command an error shows its whole traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
plugins_app = typer.Typer(
    help="The installed plugins: rewards, adapters, strategies, data sets, stages.", no_args_is_help=True
)
app.add_typer(plugins_app, name="plugins")

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a packaged one such as `quickstart`.")
]
ModelArgument = Annotated[str, typer.Argument(help="A folder, a Hub id, or RUN:STAGE such as `quickstart:grpo`.")]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="For instance `-o stages.dpo.args.beta=0.1`."),
]
RunsOption = Annotated[Path, typer.Option("--runs-dir", help="Where results go.", envvar="POSTTRAIN_RUNS_DIR")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
RUNS = Path("runs")


def main() -> None:
    """The entry point: turns our errors into a message and an exit code."""
    is_debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app(prog_name="posttrain")
    except PosttrainError as error:
        _tell(error, is_debug)
        raise SystemExit(error.exit_code) from None


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
    """
    from posttrain_plugins import api

    _run_and_show(
        api.plan(recipe, override or [], runs_dir=runs_dir, until=until, only=only or [], force=force or []), as_json
    )


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files, or names of packaged ones.")],
    override: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check recipes: every mistake at once, each with file:line:column. Loads no model; takes half a second."""
    from posttrain_plugins import api
    from posttrain_plugins.errors import RecipeErrors

    found: list[dict[str, Any]] = []
    for name in recipes:
        try:
            checked = api.validate(name, override or [])
            if not as_json:
                print(f"{name}: fine, {len(checked.stages)} stages: {', '.join(s.id for s in checked.stages)}")
        except RecipeErrors as errors:
            found += [vars(mistake) for mistake in errors.mistakes]
            if not as_json:
                _tell(errors, False)
    if as_json:
        print(json.dumps({"mistakes": found}, indent=1))
    if found:
        raise typer.Exit(2)


@app.command()
def plan(
    recipe: RecipeArgument, override: OverrideOption = None, runs_dir: RunsOption = RUNS, as_json: JsonOption = False
) -> None:
    """Show what would run, what is cached, and why the rest is not."""
    from posttrain_plugins import api

    chosen = api.plan(recipe, override or [], runs_dir=runs_dir)
    if as_json:
        print(json.dumps([stage.to_json() for stage in chosen.stages], indent=1))
        return
    from posttrain_plugins.cli.tables import plan_table

    _out().print(plan_table(chosen))


@app.command()
def report(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The name of a run below RUNS_DIR, such as `quickstart`.")],
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Print the tables of a run again, from what stands below RUNS_DIR."""
    from posttrain_plugins.errors import InputError
    from posttrain_plugins.recipe.store import Store

    store = Store(runs_dir.resolve(), name)
    artifacts = store.all_latest()
    if not artifacts:
        known = sorted(p.parent.name for p in runs_dir.glob("*/latest"))
        raise InputError(f"no run '{name}' below {runs_dir}", hint=f"runs there: {', '.join(known) or 'none'}")
    _show(name, artifacts, as_json)


@app.command()
def evaluate(
    model: ModelArgument,
    dataset: Annotated[str, typer.Option(help="A file, or a data set plugin: `digit_chain(split=test, size=100)`.")],
    reward: Annotated[
        list[str], typer.Option(help="The first is the metric (repeatable); RUN:STAGE is a reward model.")
    ],
    strategy: Annotated[
        list[str] | None, typer.Option(help="`greedy`, `self_consistency(n=8)` ... (repeatable).")
    ] = None,
    num_generations: Annotated[int, typer.Option(help="Completions per problem for sampled accuracy; 0 for none.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Completion tokens at most.")] = 1024,
    temperature: Annotated[float, typer.Option(help="Of the samples.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same samples.")] = 0,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Measure a model with strategies on a data set: accuracy with intervals, tokens, pass@k."""
    from posttrain_plugins import api

    settings = {"num_generations": num_generations, "max_tokens": max_tokens, "temperature": temperature}
    chosen = api.plan_evaluation(
        model,
        dataset=dataset,
        rewards=reward,
        strategies=strategy or ["greedy"],
        seed=seed,
        runs_dir=runs_dir,
        **settings,
    )
    _run_and_show(chosen, as_json)


@app.command()
def ask(
    model: ModelArgument,
    question: Annotated[str, typer.Argument(help="The prompt; `-` reads it from stdin.")],
    strategy: Annotated[str, typer.Option(help="How to answer, such as `self_consistency(n=8)`.")] = "greedy",
    scorer: Annotated[
        list[str] | None, typer.Option(help="NAME=REWARD that the strategy asks for; RUN:STAGE is one.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Completion tokens at most.")] = 1024,
    temperature: Annotated[float, typer.Option(help="Of samples; `greedy` is always 0.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    trace: Annotated[bool, typer.Option("--trace", help="Show every candidate with its score.")] = False,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Answer one question with a model and a strategy."""
    from posttrain_plugins import api

    _quiet()
    text = sys.stdin.read() if question == "-" else question
    result = api.ask(
        model,
        text,
        strategy=strategy,
        scorers=scorer or [],
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        runs_dir=runs_dir,
    )
    if as_json:
        from dataclasses import asdict

        print(json.dumps(asdict(result), indent=1, default=str))
        return
    if trace:
        from posttrain_plugins.cli.tables import candidate_table

        _err().print(candidate_table(result))
    print(result.text)
    if result.error:
        raise StageFailed(f"strategy '{strategy}' failed: {result.error}")


@plugins_app.command("list")
def plugins_list(
    kind: Annotated[str | None, typer.Option(help="reward, adapter, strategy, dataset or stage.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List every plugin with its package and version; a broken one with its cause."""
    from posttrain_plugins import catalogue

    rows = catalogue.listing(kind)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from posttrain_plugins.cli.tables import plugin_table

    _out().print(plugin_table(rows))


@plugins_app.command("show")
def plugins_show(
    name: Annotated[
        str, typer.Argument(help="A plugin's name, `distribution:name`, `module:attr` or `./file.py:attr`.")
    ],
    kind: Annotated[str | None, typer.Option(help="Where several kinds have that name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show one plugin: what it does, its parameters with types and defaults, needed columns, and where it lives."""
    from posttrain_plugins import catalogue

    found = catalogue.show(name, kind)
    if as_json:
        print(json.dumps(found, indent=1, default=str))
        return
    from posttrain_plugins.cli.tables import print_plugin

    print_plugin(_out(), found)


# --- printing ---------------------------------------------------------------------------------------------------------


def _run_and_show(chosen: Any, as_json: bool) -> None:
    from posttrain_plugins.cli.display import RunDisplay
    from posttrain_plugins.recipe.run import run_plan

    display = RunDisplay(_err(), is_quiet=as_json)
    if any(stage.must_run for stage in chosen.stages):
        _quiet(display.console)
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():  # rewards may print
            finished = run_plan(chosen, display)
    except Interrupted as stop:
        raise Interrupted(stop.message, hint=f"go on with the same command: {_command()}") from None
    finally:
        display.close()
    _show(chosen.recipe.name, finished.artifacts, as_json)
    if not as_json:
        _err().print(f"results: {chosen.store.folder}", highlight=False, style="dim", soft_wrap=True)


def _show(name: str, artifacts: Any, as_json: bool) -> None:
    from posttrain_plugins.recipe import report as reporting

    rows = reporting.rows(artifacts)
    if as_json:
        stages = {
            id: {"metrics": a.metrics, "folder": str(a.folder), "model_path": a.model_path and str(a.model_path)}
            for id, a in artifacts.items()
        }
        print(json.dumps({"recipe": name, "stages": stages, "rows": [row.to_json() for row in rows]}, indent=1))
        return
    from posttrain_plugins.cli.tables import evaluation_table, result_table

    out = _out()
    out.print(result_table(rows, name))
    for artifact in reporting.evaluations(artifacts):
        title = f"{artifact.manifest['stage']}: {artifact.details['metric']} on {artifact.details['problems']} problems"
        out.print(evaluation_table(artifact.details, title))


def _tell(error: PosttrainError, is_debug: bool) -> None:
    """The message and the hint; the whole traceback with --debug, and where a stage's own code failed."""
    cause = error.__cause__
    if is_debug:
        traceback.print_exception(error)
    elif isinstance(error, StageFailed) and error.hint is None and cause is not None:
        traceback.print_exception(cause)
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"\nhint: {error.hint}", file=sys.stderr)


def _command() -> str:
    """What goes on where this stopped: the same, without `--force`, which would begin again."""
    kept: list[str] = []
    given = iter(sys.argv[1:])
    for argument in given:
        if argument == "--force":
            next(given, None)
        elif not argument.startswith("--force="):
            kept.append(argument)
    return shlex.join(["posttrain", *kept])


def _out() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _err() -> Console:
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else 160)


def _quiet(console: Console | None = None) -> None:
    """Before torch and its like are imported: one display instead of five."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from posttrain_plugins.cli.display import quiet_libraries

    quiet_libraries(console or _err())
