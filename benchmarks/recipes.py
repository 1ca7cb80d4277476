"""The gains of the packaged recipes at their full size, for several seeds.

For every model that a recipe measures: sampled accuracy, its gain over the model that it was made from, pooled over the
seeds and seed by seed, greedy, and what else was measured; what each stage took, and which were in the store already.
All recipes of a seed share one runs folder, so that base, SFT model and whatever else is equal are made once. A
recipe's results file is written after each seed, and what stands in it is not run again: a series that was stopped goes
on. `methods.json`, which is made of these files, is written too.

    python benchmarks/recipes.py                      # what lacks of seeds 0, 1, 2, fewest seeds first
    python benchmarks/recipes.py --next               # one seed of the recipe that has the fewest, and no more
    python benchmarks/recipes.py --after COMMIT       # and what was measured before that commit, or on a dirty tree
    python benchmarks/recipes.py rlhf_ppo raft --seeds 3
    python benchmarks/recipes.py offline --development -o stages.kto.args.learning_rate=1e-4

Settings are chosen with `--development`: another seed and other held-out problems than those that are reported, into
a folder of `runs/development`. Where each recipe's were chosen stands in `series.SETTINGS`, and in its results file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import human_feedback
import methods
import quickstart_seeds
import search
import series
import test_time
from result_tables.recipes import recipe_table

ROOT = Path(__file__).resolve().parent.parent
OTHERS = {
    "quickstart": quickstart_seeds.ALONE,
    "test_time": test_time.ALONE,
    "human_feedback": human_feedback.ALONE,
    **search.RECIPES,
}
"""Recipes of which a script of their own tells more."""
NAMES = sorted(file.stem for file in (ROOT / "recipes").glob("[!_]*.yaml"))
OVERRIDES = {
    "full_deepspeed": (
        "launch={num_processes: 2}",
        *(f"stages.{stage}.args.per_device_train_batch_size=16" for stage in ("zero2", "zero3")),
    )
}
"""What a recipe needs on two cores: 32 rows a step, as it has on eight GPUs."""
FOLLOWED = {"value_guided": {"sft": "best_of_n(n=8, scorer=value)", "ppo": "best_of_n(n=2, scorer=ppo_value)"}}
"""Recipe -> model -> what must be above one sample of that model with the whole interval."""
DEVELOPMENT_SEEDS = [7]
SPLITS = {"tree", "graph"}
"""Recipes whose data sets have a split `development`; of the others a seed draws other held-out problems."""


def main() -> int:
    options = _options()
    alone = {name: OTHERS.get(name) or _alone(name) for name in options.recipes}

    def table_of_methods(name: str) -> None:
        if name in methods.METHODS:
            methods.write(options.override, options.out)

    return series.go(alone, options, table_of_methods)


def _alone(recipe: str) -> series.Alone:
    return series.Alone(f"recipe_{recipe}", partial(one_seed, recipe), partial(over_seeds, recipe), recipe_table)


def one_seed(recipe: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a recipe with a seed and collects its figures."""
    told = series.Told(seed)
    needed = list(OVERRIDES.get(recipe, ()))
    run = series.run_seed(told, recipe, options.runs_dir, [*needed, *options.override])
    found = series.collect(run["eval"].details, {name: artifact.manifest for name, artifact in run.items()})
    curves = {name: methods.curve(run[name].folder) for name in methods.CURVES if name in run}
    more = {name: value for name, value in {"needed": needed, "curves": curves}.items() if value}
    return {**found, **series.whole(run, told), **more}


def over_seeds(recipe: str, seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The pooled gains, and of a recipe that follows a value function each way over one sample, and what is missed."""
    found: dict[str, Any] = {"gains": series.gains_of(seeds)}
    if recipe in FOLLOWED:
        found["over_sampled"] = {model: _over_sampled(seeds, model) for model in FOLLOWED[recipe]}
        must = [
            (model, way, found["over_sampled"][model][way])
            for model, way in FOLLOWED[recipe].items()
            if way in found["over_sampled"][model]  # overrides may ask for others
        ]
        found["missed"] = [
            f"{way} is {gain['mean']:+.3f} over one sample of {model}, from {gain['low']:+.3f}"
            for model, way, gain in must
            if not gain["low"] > 0
        ]
    return found


def _over_sampled(seeds: Mapping[str, Mapping[str, Any]], model: str) -> dict[str, Any]:
    """Each way to answer that has completions of its own, over one sample of the model."""
    values = {seed: one["values"][model] for seed, one in seeds.items()}
    ways = [way for way in next(iter(values.values())) if way != "sampled"]
    return {way: series.pooled({seed: (of[way], of["sampled"]) for seed, of in values.items()}) for way in ways}


def _options() -> argparse.Namespace:
    parser = series.parser(__doc__)
    parser.add_argument("recipes", nargs="*", default=NAMES, help="names of packaged recipes with a stage `eval` (all)")
    parser.add_argument("--development", action="store_true", help="seed 7, problems that are not reported, no results")
    parser.set_defaults(noise=human_feedback.NOISE)
    options = parser.parse_args()
    if unknown := sorted({*options.recipes} - {*NAMES}):
        parser.error(f"no packaged recipe is called {unknown[0]}, expected some of {', '.join(NAMES)}")
    if options.development:
        if options.seeds == list(series.REPORTED):
            options.seeds = DEVELOPMENT_SEEDS
        if reported := {*options.seeds} & {*series.REPORTED}:
            parser.error(f"seed {min(reported)} is reported: no setting is chosen on it")
        split = {*options.recipes} <= SPLITS  # whose held-out problems are split by name
        own = ["datasets.heldout.split=development"] if split else list(series.DEVELOPMENT)
        if {*options.recipes} & SPLITS and not split:
            parser.error(f"{', '.join(sorted(SPLITS))} have development problems of their own: try them by themselves")
        options.override = [*own, *options.override]
        tried = re.sub(r"[^\w.=-]+", "_", " ".join(options.override))
        options.out = ROOT / "runs" / "development" / tried
    return options


if __name__ == "__main__":
    raise SystemExit(main())
