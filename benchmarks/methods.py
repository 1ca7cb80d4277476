"""Every training method on the tiny world in one table: what each gains over the SFT model, seed by seed, and its time.

It runs the packaged recipes that hold the methods, each seed into its own folder, so that base and SFT model are made
once and what `recipes.py` ran is taken from the store. What must hold, else exit 1:

1. PPO, REINFORCE++ and GRPO: on every seed the whole 95 % interval of the gain is above 0;
2. the mean gain of each is more than twice the standard deviation of its gains over the seeds.

And a question that is answered, not demanded: do process rewards bring PPO to the level that the outcome alone reaches
in fewer steps? Both learning curves stand in the results.

    python benchmarks/methods.py --seeds 0 1 2
    python benchmarks/methods.py grpo --seeds 3 --add
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record
import render
from quickstart_seeds import run_seed

import recipes
from posttrain_plugins.record.figures import read_figures

ROOT = Path(__file__).resolve().parent.parent
METHODS: dict[str, dict[str, str]] = {
    "grpo": {"grpo": "GRPO"},
    "process_reward": {"outcome": "PPO", "process": "PPO, process rewards"},
    "reinforce": {"reinforce_pp": "REINFORCE++", "remax": "ReMax", "rloo": "RLOO"},
    "rlhf_ppo": {"ppo": "PPO, reward model"},
    "raft": {"raft.3.tuned": "RAFT"},
    "star": {"star.3.tuned": "STaR"},
    "rest": {"improved_most": "ReST"},
    "iterative_dpo": {"round.3.dpo": "iterative DPO"},
    "offline": {"rejection": "SFT on the best", "dpo": "DPO", "kto": "KTO", "oreo": "OREO"},
    "rlaif": {"dpo": "DPO, judge's pairs", "grpo": "GRPO, judge's reward"},
}
"""Recipe -> model -> what the method is called."""
MUST_GAIN = ("PPO", "REINFORCE++", "GRPO")
CURVES = ("outcome", "process")
WINDOW = 5  # steps that a point of a curve is the mean of


def main() -> int:
    options = _options()
    methods, curves = earlier(options.out, options.override) if options.add else ({}, {})
    for recipe in options.recipes:
        for seed in options.seeds:
            run = run_seed(seed, str(ROOT / "recipes" / f"{recipe}.yaml"), options.runs_dir, options.override)
            found = recipes.collect(run["eval"].details, {name: one.manifest for name, one in run.items()})
            for model, method in METHODS[recipe].items():
                methods.setdefault(method, {})[str(seed)] = {"commit": record.commit(), **of_model(found, model)}
            if recipe == "process_reward":
                curves[str(seed)] = compare(*(curve(run[name].folder) for name in CURVES))
    methods = {method: dict(sorted(methods[method].items())) for method in methods}
    results = {"overrides": options.override, "methods": methods, "process_rewards": dict(sorted(curves.items()))}
    missed = list(unmet(methods))
    print(record.write("methods", {**results, "missed": missed}, options.out), file=sys.stderr)
    print(render.methods_table(results))
    for what in missed:
        print(f"error: missed: {what}", file=sys.stderr)
    return 1 if missed else 0


def earlier(folder: Path, overrides: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The methods and curves that the results file holds, each method on each seed with the commit that it ran on.

    Raises:
        SystemExit: they were made with other overrides.
    """
    results, commit = record.earlier("methods", overrides, folder)
    methods = {
        method: {seed: {**commit, **one} for seed, one in seeds.items()}
        for method, seeds in results.get("methods", {}).items()
    }
    return methods, results.get("process_rewards", {})


def of_model(found: Mapping[str, Any], model: str) -> dict[str, Any]:
    """One method on one seed; a loop's training time is that of all its turns."""
    told = found["models"][model]
    turns = re.compile(re.sub(r"\\.\d+\\.", r"\\.\\d+\\.", re.escape(model)))  # `raft.3.tuned`: `raft.1.tuned` too
    stages = [name for name in found["metrics"] if turns.fullmatch(name)]
    return {
        "gain": told["gain"] if told["parent"] == "sft" else _difference(found["models"], model),
        "sampled": told["measures"]["sampled"],
        "greedy": told["measures"]["greedy"]["mean"],
        "train_s": sum(found["metrics"][name].get("train_s", 0.0) for name in stages),
    }


def _difference(models: Mapping[str, Any], model: str) -> dict[str, float]:
    """The gain of a loop's last turn over SFT, where `evaluate` has it over the turn before: of the means alone."""
    means = [models[name]["measures"]["sampled"]["mean"] for name in (model, "sft")]
    return {"mean": means[0] - means[1]}


def curve(stage: Path) -> list[float]:
    """The checker's score of each step's completions."""
    name = "rewards/correct/mean"
    return [line.figures[name] for line in read_figures(stage) if name in line.figures]


def compare(outcome: Sequence[float], process: Sequence[float]) -> dict[str, Any]:
    """Steps that each needs to the level at which the outcome alone ends.

    Example:
        >>> compare([0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])["steps"]
        {'outcome': 4, 'process': 2}
    """
    size = min(WINDOW, len(outcome) // 2)
    smooth = {name: _means(values, size) for name, values in zip(CURVES, (outcome, process), strict=True)}
    level = smooth["outcome"][-1]
    steps = {
        name: next((i + size for i, v in enumerate(values) if v >= level), None) for name, values in smooth.items()
    }
    return {"level": level, "window": size, "steps": steps, "curves": {"outcome": outcome, "process": process}}


def _means(values: Sequence[float], size: int) -> list[float]:
    return [sum(values[i : i + size]) / size for i in range(len(values) - size + 1)]


def unmet(methods: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is missed of what must hold, of the methods that were run."""
    for method in MUST_GAIN:
        seeds = methods.get(method, {})
        gains = [one["gain"] for one in seeds.values()]
        for seed, gain in zip(seeds, gains, strict=True):
            if gain["low"] <= 0:
                yield f"{method}, seed {seed}: the gain's interval [{gain['low']:.3f}, {gain['high']:.3f}] holds 0"
        means = [gain["mean"] for gain in gains]
        if len(means) > 1 and statistics.fmean(means) <= 2 * statistics.stdev(means):
            mean, spread = statistics.fmean(means), statistics.stdev(means)
            yield f"{method}: the mean gain is {mean:.3f}, but the seeds' standard deviation {spread:.3f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(METHODS), help=f"some of {', '.join(METHODS)} (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which seeds (0 1 2)")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "seeds", help="one folder per seed goes here")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of methods.json")
    parser.add_argument("--add", action="store_true", help="keep the methods and seeds that methods.json holds already")
    parser.add_argument(
        "-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="as `posttrain run -o`"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.recipes) - METHODS.keys()):
        parser.error(f"no methods are known of recipe {unknown[0]}, expected some of {', '.join(METHODS)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
