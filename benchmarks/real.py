"""The recipes of `recipes/real` at their full size: gains on a real chat model, pooled over seeds, each seed beside.

`real.json` has what is trained, `real_strategies.json` how it is asked, `real_forgetting.json` what training costs
elsewhere; each is written after each recipe and seed, and what stands in it is not run again (`series.py`, which has
the bootstrap too).

    python benchmarks/real.py chain ppo --seeds 0 1 2
    python benchmarks/real.py react --seeds 1 2 --only base traces grpo eval
    python benchmarks/real.py --next         # one seed of the recipe that has the fewest, and no more
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import record
import render
import series
from series import Values

ROOT = series.ROOT


class Gain(NamedTuple):
    """One measure of one model over another of another model; a measure is named by how its label begins."""

    model: str
    measure: str
    over: str
    over_measure: str


GAINS: dict[str, tuple[Gain, ...]] = {
    "chain": (
        Gain("sft", "greedy", "base", "chain_of_thought"),
        Gain("dpo", "sampled", "sft", "sampled"),
        Gain("dpo", "greedy", "sft", "greedy"),
        Gain("grpo", "sampled", "sft", "sampled"),
        Gain("grpo", "greedy", "sft", "greedy"),
    ),
    "chain_of_thought": (
        Gain("steps", "greedy", "answers", "greedy"),
        Gain("steps", "greedy", "answers", "self_consistency"),
    ),
    "ppo": (Gain("ppo", "sampled", "sft", "sampled"), Gain("ppo", "greedy", "sft", "greedy")),
    "qlora": (Gain("dpo", "sampled", "sft", "sampled"), Gain("grpo", "sampled", "sft", "sampled")),
    "react": (
        Gain("traces", "react", "traces", "greedy"),
        Gain("traces", "react", "answers", "greedy"),
        Gain("grpo", "react", "traces", "react"),
    ),
    "reflection": (
        Gain("reviser", "episodic_memory", "reviser", "greedy"),
        Gain("reviser", "episodic_memory", "reviser", "self_consistency(n=8)"),
        Gain("reviser", "episodic_memory", "reviser", "best_of_n(n=4"),
    ),
    "strategies": (),
    "forgetting": tuple(Gain(model, "greedy", "base", "greedy") for model in ("sft", "replay", "half")),
}

FILES = {
    **dict.fromkeys(("chain_of_thought", "react", "reflection", "strategies"), "real_strategies"),
    "forgetting": "real_forgetting",
}


def main() -> int:
    options = _options()

    def standing(recipe: str) -> dict[str, dict[str, Any]]:
        results, made_on = record.earlier(FILES.get(recipe, "real"), options.override, options.out)
        seeds = results.get("recipes", {}).get(recipe, {}).get("seeds", {})
        return {seed: {**made_on, **one} for seed, one in seeds.items()}

    def keep(recipe: str, seed: str, figures: dict[str, Any]) -> None:
        file = FILES.get(recipe, "real")
        results, _ = record.earlier(file, options.override, options.out)
        seeds = dict(sorted({**standing(recipe), seed: figures}.items(), key=lambda one: int(one[0])))
        settings = series.settings_of(f"real/{recipe}")
        told = {"settings": settings, "seeds": seeds, "gains": pooled(recipe, seeds), "ways": ways(seeds)}
        found = {**results.get("recipes", {}), recipe: told}
        ordered = {name: found[name] for name in GAINS if name in found}
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        results = {"overrides": options.override, "threads": threads, "recipes": ordered}
        print(record.write(file, results, options.out), file=sys.stderr)
        print(render.TABLES[file](results), flush=True)

    one = series.Series(standing, lambda recipe, seed: one_seed(recipe, seed, options), keep)
    return 1 if series.measure(one, options.recipes, options) else 0


def one_seed(recipe: str, seed: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a recipe with a seed and collects each problem's figures, and what the stages took."""
    told = series.Told(int(seed))
    run = series.run_seed(told, f"real/{recipe}", options.runs_dir, options.override, options.only)
    evaluations = [artifact for artifact in run.values() if (artifact.folder / "samples.jsonl").is_file()]
    tokens: dict[str, dict[str, float]] = {}
    for evaluation in evaluations:
        for model, found in evaluation.details["models"].items():
            spent = {label: one["tokens_per_problem"] for label, one in found["measures"].items()}
            tokens.setdefault(model, {}).update(spent)
    return {
        "overlap": {name: count for one in evaluations for name, count in one.details["overlap"].items()},
        **series.whole(run, told),
        "tokens": tokens,
        "seconds": {name: artifact.manifest["seconds"] for name, artifact in run.items()},
        "metrics": {name: artifact.manifest["metrics"] for name, artifact in run.items()},
        "retain": {name: kept for one in evaluations for name, kept in one.details.get("retain", {}).items()},
    }


def pooled(recipe: str, seeds: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each gain over all seeds, with its interval, and by seed."""
    gains = []
    for gain in GAINS[recipe]:
        pairs = {seed: _pair(gain, found["values"]) for seed, found in seeds.items()}
        known = {seed: pair for seed, pair in pairs.items() if pair is not None}
        if known:
            gains.append({**gain._asdict(), **series.pooled(known)})
    return gains


def ways(seeds: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each way of asking each model, over the seeds that have it: accuracy with its interval, and tokens a problem.

    The interval is of the problems alone, Wilson's, which has a width where none or all are right too.
    """
    found: dict[tuple[str, str], tuple[list[list[float]], list[float]]] = {}
    for seed in seeds.values():
        for model, measures in seed["values"].items():
            for measure, values in measures.items():
                rows, tokens = found.setdefault((model, measure), ([], []))
                rows.append(values)
                tokens.append(seed["tokens"][model][measure])
    return [
        {
            "model": model,
            "measure": measure,
            **wilson(float(np.mean(rows)), len(rows[0])),
            "tokens": float(np.mean(tokens)),
            "seeds": len(rows),
        }
        for (model, measure), (rows, tokens) in found.items()
    ]


def _pair(gain: Gain, values: Values) -> tuple[list[float], list[float]] | None:
    found = []
    for model, measure in ((gain.model, gain.measure), (gain.over, gain.over_measure)):
        labels = [label for label in values.get(model, {}) if label.startswith(measure)]
        if not labels:
            return None
        found.append(values[model][labels[0]])
    return found[0], found[1]


def wilson(mean: float, problems: int) -> dict[str, float]:
    """The 95 % interval of a share of so many problems (Wilson, 1927).

    Example:
        >>> {name: round(value, 3) for name, value in wilson(0.0, 100).items()}
        {'mean': 0.0, 'low': 0.0, 'high': 0.037}
    """
    z = 1.96
    middle, scale = (mean + z * z / (2 * problems)), 1 + z * z / problems
    half = z * (mean * (1 - mean) / problems + z * z / (4 * problems * problems)) ** 0.5
    return {"mean": mean, "low": max(0.0, (middle - half) / scale), "high": min(1.0, (middle + half) / scale)}


def _options() -> argparse.Namespace:
    parser = series.parser(__doc__, ROOT / "runs" / "real")
    parser.add_argument("recipes", nargs="*", default=list(GAINS), help=f"some of {', '.join(GAINS)} (all)")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="these stages alone (all)")
    options = parser.parse_args()
    if unknown := sorted(set(options.recipes) - GAINS.keys()):
        parser.error(f"no gains are known of recipe {unknown[0]}, expected some of {', '.join(GAINS)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
