"""The commands on recipes: run, validate and plan."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from posttrain_plugins.cli.options import (
    RUNS,
    JsonOption,
    LaunchOption,
    OverrideOption,
    ProcessesOption,
    RecipeArgument,
    RunsOption,
    with_launch,
)
from posttrain_plugins.cli.output import out, print_error, quiet
from posttrain_plugins.cli.runs import run_and_show

__all__ = ["plan", "run", "validate"]


def run(
    recipe: RecipeArgument,
    override: OverrideOption = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run only this stage (repeatable).")] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage again (repeatable).")] = None,
    launch: LaunchOption = None,
    num_processes: ProcessesOption = None,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe. What is done already is not done again; Ctrl-C saves a checkpoint, the same command goes on.

    Results stand in `RUNS_DIR/<recipe>/<stage>-<key>/`, and `latest/<stage>` points to the newest.

    Exit codes: 0 done, 1 failed, 2 your input is wrong, 3 a gate was not met, 4 a person has to decide before it goes
    on; stopped, with a checkpoint: 130 by you (Ctrl-C), 143 by SIGTERM, 138 by SIGUSR1, with which SLURM warns.

    `posttrain run quickstart -o stages.dpo.args.beta=0.2 --until dpo`

    `posttrain run full_deepspeed --launch zero3 --num-processes 8`
    """
    from posttrain_plugins import api
    from posttrain_plugins.recipe.run.launched import lend

    overrides = with_launch(override or [], launch, num_processes)
    chosen = api.plan(recipe, overrides, runs_dir=runs_dir, until=until, only=only or [], force=force or [])
    if not lend(chosen):
        run_and_show(chosen, as_json)


def validate(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files, or names of packaged ones.")],
    override: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check recipes: every mistake at once, each with file:line:column. Loads no model; takes about a second.

    `posttrain validate mine.yaml lora --json`
    """
    # not `api`, which has what runs a recipe, too
    from posttrain_plugins.errors import RecipeErrors
    from posttrain_plugins.recipe.check.check import check
    from posttrain_plugins.recipe.read.document import load
    from posttrain_plugins.recipe.read.packaged import find_recipe

    found: list[dict[str, Any]] = []
    warnings: list[dict[str, Any]] = []
    for name in recipes:
        try:
            checked = check(load(find_recipe(name), override or []))
            told = [(stage.id, issue) for stage in checked.stages for issue in stage.warnings]
            warnings += [{"recipe": name, "stage": id, "message": one.message, "hint": one.hint} for id, one in told]
            if not as_json:
                ids = [stage.id for stage in checked.stages]
                print(f"{name}: fine, {len(ids)} stage{'s' if len(ids) != 1 else ''}: {', '.join(ids)}")
                for id, issue in told:
                    print(f"warning: {id}: {issue}")
        except RecipeErrors as errors:  # and goes on: all recipes that were named are checked in one call
            found += [vars(mistake) for mistake in errors.mistakes]
            if not as_json:
                print_error(errors, False)
    if as_json:
        print(json.dumps({"mistakes": found, "warnings": warnings}, indent=1))
    if found:
        raise typer.Exit(2)


def plan(
    recipe: RecipeArgument,
    override: OverrideOption = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also show which tokens carry loss, for a few rows.")] = False,
    rows: Annotated[int, typer.Option(min=2, help="How many rows of each stage `--masks` shows.")] = 2,
    launch: LaunchOption = None,
    num_processes: ProcessesOption = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Also show the memory that training takes: of a GPU of 80GB, or `here`."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of a prompt, for `--memory` where one samples.")] = 512,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Show what would run, what is cached, and why the rest is not; and what each stage trains on top of what.

    With `--masks` also what each training stage learns from, as TRL prepares it, and where EOS is never learned.

    With `--memory` also what each training stage takes, from the configs alone: weights, adapters, gradients,
    optimizer, activations, logits, KV cache, reference, critic, reward models; whether it fits, and the one change that
    makes it fit.

    `posttrain plan quickstart -o stages.sft.args.learning_rate=1e-3`

    `posttrain plan lora --memory 24GB`
    """
    from posttrain_plugins import api
    from posttrain_plugins.memory_plan.work import work_of

    if memory is not None:
        quiet()
    there = None if memory is None else _machine(memory)  # before anything is read: it may be no size
    chosen = api.plan(recipe, with_launch(override or [], launch, num_processes), runs_dir=runs_dir)
    if masks:
        quiet()
    shown = api.masks(chosen, rows) if masks else {}  # before anything is printed: it may refuse, and it takes seconds
    work = work_of(chosen, prompt_tokens=prompt_tokens)
    taken, advice = ({}, {}) if there is None else _memory(chosen, there, prompt_tokens)
    if as_json:
        from posttrain_plugins.cli.memory_tables import memory_json

        found = [stage.to_json() | ({"masks": shown[stage.id]} if stage.id in shown else {}) for stage in chosen.stages]
        for one in found:
            id = one["stage"]
            one |= {"work": vars(work[id]) | {"tokens": work[id].tokens}} if id in work else {}
            one |= (
                {"memory": memory_json(taken[id], advice.get(id), there)} if there is not None and id in taken else {}
            )
        print(json.dumps(found, indent=1))
        return
    from posttrain_plugins.cli.memory_tables import memory_lines, memory_tables, work_table
    from posttrain_plugins.cli.tables import code_of, copies_of, footing_table, plan_table, pushes_of, warnings_of

    out().print(plan_table(chosen))
    if any(stage.starting_point for stage in chosen.stages):
        out().print(footing_table(chosen))
    if work:
        out().print(work_table(work))
    for table in memory_tables(taken, there) if there is not None else ():
        out().print(table)
    for line in memory_lines(taken, advice, there) if there is not None else ():
        out().print(line, highlight=False, soft_wrap=True)
    for line in (*code_of(chosen), *copies_of(chosen), *pushes_of(chosen)):
        out().print(line, highlight=False, soft_wrap=True)
    if shown:
        from posttrain_plugins.cli.loss_masks import print_masks

        print_masks(out(), shown)
    for warning in warnings_of(chosen):
        out().print(warning, style="yellow", highlight=False, soft_wrap=True)


def _machine(memory: str) -> Any:
    from posttrain_plugins.memory_plan.sizes import machine

    return machine(memory)


def _memory(chosen: Any, there: Any, prompt_tokens: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Estimate all stages, and for those that do not fit the change that makes them."""
    from posttrain_plugins.memory_plan.advice import advise, fits
    from posttrain_plugins.memory_plan.estimate import Estimator

    estimator = Estimator(there, prompt_tokens)
    taken = estimator.all(chosen)
    large = [id for id, one in taken.items() if not isinstance(one, str) and not fits(one, there.memory)]
    return taken, {id: advise(chosen, chosen[id].spec, estimator) for id in large}
