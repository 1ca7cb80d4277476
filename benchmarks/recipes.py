"""The gains of the packaged recipes at their full size, for several seeds.

Each seed runs into its own folder, which all recipes share, so that base and SFT model are made once. For every model
that a recipe measures: sampled accuracy, its gain over the model that it was made from with its 95 % interval, greedy,
and what else was measured; and what each stage took.

    python benchmarks/recipes.py rlhf_ppo raft --seeds 0 1 2
    python benchmarks/recipes.py rlhf_ppo raft --seeds 3 --add
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record
import render
from quickstart_seeds import run_seed

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    options = _options()
    for recipe in options.recipes:
        seeds = earlier(recipe, options.out, options.override) if options.add else {}
        for seed in options.seeds:
            seeds[str(seed)] = one_seed(seed, recipe, options.runs_dir, options.override)
        results = {"recipe": recipe, "overrides": options.override, "seeds": dict(sorted(seeds.items()))}
        print(record.write(f"recipe_{recipe}", results, options.out), file=sys.stderr)
        print(render.recipe_table(results))
    return 0


def earlier(recipe: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The seeds that the results file holds, each with the commit that it ran on.

    Raises:
        SystemExit: they were made with other overrides.
    """
    results, commit = record.earlier(f"recipe_{recipe}", overrides, folder)
    return {seed: {**commit, **one} for seed, one in results.get("seeds", {}).items()}


def one_seed(seed: int, recipe: str, runs_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs a recipe with a seed and collects its figures."""
    run = run_seed(seed, str(ROOT / "recipes" / f"{recipe}.yaml"), runs_dir, overrides)
    found = collect(run["eval"].details, {name: artifact.manifest for name, artifact in run.items()})
    return {"commit": record.commit(), **found}


def collect(details: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one seed, from the evaluation's details and every stage's manifest."""
    metric = details["metric"]
    models = {
        name: {
            "parent": found["gain"].get("over"),
            "gain": found["gain"].get("measures", {}).get("sampled"),
            "measures": {label: measure["rewards"][metric] for label, measure in found["measures"].items()},
        }
        for name, found in details["models"].items()
    }
    return {
        "problems": details["problems"],
        "overlap": details["overlap"],
        "models": models,
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
        "metrics": {name: manifest["metrics"] for name, manifest in manifests.items() if name != "eval"},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="names of packaged recipes with a stage `eval`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which seeds (0 1 2)")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "seeds", help="one folder per seed goes here")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of recipe_NAME.json")
    parser.add_argument("--add", action="store_true", help="keep the seeds that recipe_NAME.json holds already")
    parser.add_argument(
        "-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="as `posttrain run -o`"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
