"""Every training method on the tiny world in one table: what each gains over the SFT model, seed by seed, and its time.

It runs nothing: the table is made of the results files of the recipes that hold the methods, `recipe_NAME.json`, which
`recipes.py` writes; each figure keeps the commit and the load that it was measured at. What must hold, else exit 1:

1. PPO, REINFORCE++ and GRPO: on every seed the whole 95 % interval of the gain is above 0;
2. the mean gain of each is more than twice the standard deviation of its gains over the seeds.

And a question that is answered, not demanded: do process rewards bring PPO to the level that the outcome alone reaches
in fewer steps? Both learning curves stand in the results.

    python benchmarks/methods.py
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import levels
import record
import series
from result_tables.recipes import methods_table

from posttrain_plugins.record.figures import read_figures

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
    results = write(options.override, options.out)
    print(methods_table(results))
    for what in results["missed"]:
        print(f"error: missed: {what}", file=sys.stderr)
    return 1 if results["missed"] else 0


def write(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Write `methods.json` of the recipes' files beside it, and return what it says."""
    results = of_recipes(overrides, folder)
    print(record.write("methods", results, folder), file=sys.stderr)
    return results


def of_recipes(overrides: list[str], folder: Path) -> dict[str, Any]:
    """The methods and curves of what the recipes' files in a folder hold.

    Raises:
        SystemExit: one of them was made with other overrides.
    """
    methods: dict[str, dict[str, Any]] = {}
    gains, settings, curves = {}, {}, {}
    for recipe, models in METHODS.items():
        found, made_on = record.earlier(f"recipe_{recipe}", overrides, folder)
        seeds = {seed: {**made_on, **one} for seed, one in found.get("seeds", {}).items()}
        for model, method in models.items() if seeds else ():
            methods[method] = {seed: of_model(one, model) for seed, one in seeds.items()}
            settings[method] = series.of_the_model(found.get("settings", {}), model)
            if all("values" in one for one in seeds.values()):
                values = {seed: one["values"] for seed, one in seeds.items()}
                pairs = {seed: (of[model]["sampled"], of["sft"]["sampled"]) for seed, of in values.items()}
                gains[method] = series.pooled(pairs)
        curves |= {
            seed: compare(*(one["curves"][name] for name in CURVES)) for seed, one in seeds.items() if "curves" in one
        }
    told = {"methods": methods, "gains": gains, "settings": settings, "process_rewards": curves}
    return {"overrides": overrides, **told, "missed": list(unmet(methods))}


def of_model(found: Mapping[str, Any], model: str) -> dict[str, Any]:
    """One method on one seed; a loop's training time is that of all its turns."""
    told = found["models"][model]
    turns = re.compile(re.sub(r"\\.\d+\\.", r"\\.\\d+\\.", re.escape(model)))  # `raft.3.tuned`: `raft.1.tuned` too
    stages = [name for name in found["metrics"] if turns.fullmatch(name)]
    made_on = {name: found[name] for name in ("commit", "load_average", "cpu") if name in found}
    return {
        **made_on,
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
    level = levels.running_mean(outcome, size)[-1]
    steps = {name: levels.reached(of, level, size) for name, of in zip(CURVES, (outcome, process), strict=True)}
    return {"level": level, "window": size, "steps": steps, "curves": {"outcome": outcome, "process": process}}


def unmet(methods: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is missed of what must hold, of the methods that were run."""
    for method in MUST_GAIN:
        seeds = methods.get(method, {})
        gains = [one["gain"] for one in seeds.values()]
        for seed, gain in zip(seeds, gains, strict=True):
            if not gain["low"] > 0:
                yield f"{method}, seed {seed}: the gain's interval [{gain['low']:.3f}, {gain['high']:.3f}] holds 0"
        means = [gain["mean"] for gain in gains]
        if len(means) > 1 and statistics.fmean(means) <= 2 * statistics.stdev(means):
            mean, spread = statistics.fmean(means), statistics.stdev(means)
            yield f"{method}: the mean gain is {mean:.3f}, but the seeds' standard deviation {spread:.3f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=record.RESULTS, help="folder of the recipes' files and methods.json"
    )
    parser.add_argument(
        "-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="what the recipes were run with"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
