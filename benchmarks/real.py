"""The recipes of `recipes/real` at their full size: gains on a real chat model, pooled over seeds, each seed beside.

Each seed runs into its own folder, which all recipes share, so that base and SFT model are made once; the results file
is written after each recipe and seed, and what stands in it is not run again: `real.json` has what is trained,
`real_strategies.json` how it is asked, `real_forgetting.json` what training costs elsewhere. A stage that is done is
taken from the store, so a run that was stopped goes on.

The exam is the same for all seeds, so a gain's interval is of a bootstrap that draws problems, the same for all seeds,
and seeds: 95 %, paired by problem.

    python benchmarks/real.py chain ppo --seeds 0 1 2
    python benchmarks/real.py react --seeds 1 2 --only base traces grpo eval
    python benchmarks/real.py --next         # the next recipe and seed that the file lacks, and no more
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import record
import render
from quickstart_seeds import run_seed

ROOT = Path(__file__).resolve().parent.parent
DRAWS = 10_000
Values = dict[str, dict[str, list[float]]]
"""Model -> measure -> the metric of each problem."""


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
    done = 0
    for recipe in options.recipes:
        for seed in map(str, options.seeds):
            file = FILES.get(recipe, "real")
            results, _ = record.earlier(file, options.override, options.out)
            found = results.get("recipes", {})
            if seed in found.get(recipe, {}).get("seeds", {}) or (options.next and done):
                continue
            found.setdefault(recipe, {"seeds": {}})["seeds"][seed] = one_seed(recipe, seed, options)
            found[recipe]["gains"] = pooled(recipe, found[recipe]["seeds"])
            found[recipe]["ways"] = ways(found[recipe]["seeds"])
            ordered = {name: found[name] for name in GAINS if name in found}
            threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
            results = {"overrides": options.override, "threads": threads, "recipes": ordered}
            print(record.write(file, results, options.out), file=sys.stderr)
            print(render.TABLES[file](results), flush=True)
            done += 1
    return 0


def one_seed(recipe: str, seed: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a recipe with a seed and collects each problem's figures, and what the stages took."""
    load = os.getloadavg()[0]
    file = str(ROOT / "recipes" / "real" / f"{recipe}.yaml")
    run = run_seed(int(seed), file, options.runs_dir, options.override, options.only)
    evaluations = [artifact for artifact in run.values() if (artifact.folder / "samples.jsonl").is_file()]
    values: Values = {}
    tokens: dict[str, dict[str, float]] = {}
    for evaluation in evaluations:
        for model, measures in values_of(evaluation.folder / "samples.jsonl", evaluation.details["metric"]).items():
            values.setdefault(model, {}).update(measures)
        for model, told in evaluation.details["models"].items():
            spent = {label: one["tokens_per_problem"] for label, one in told["measures"].items()}
            tokens.setdefault(model, {}).update(spent)
    return {
        "commit": record.commit(),
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
        "overlap": {name: count for one in evaluations for name, count in one.details["overlap"].items()},
        "values": values,
        "tokens": tokens,
        "seconds": {name: artifact.manifest["seconds"] for name, artifact in run.items()},
        "metrics": {name: artifact.manifest["metrics"] for name, artifact in run.items()},
        "retain": {name: kept for one in evaluations for name, kept in one.details.get("retain", {}).items()},
    }


def values_of(samples: Path, metric: str) -> Values:
    """The mean of each problem's completions, in the order of the problems."""
    scores: dict[str, dict[str, dict[int, list[float]]]] = {}
    for line in samples.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        of_measure = scores.setdefault(row["model"], {}).setdefault(row["measure"], {})
        of_measure.setdefault(int(row["problem"]), []).append(row["rewards"][metric])
    return {
        model: {name: [float(np.mean(of[problem])) for problem in sorted(of)] for name, of in measures.items()}
        for model, measures in scores.items()
    }


def pooled(recipe: str, seeds: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each gain over all seeds, with its interval, and by seed."""
    gains = []
    for gain in GAINS[recipe]:
        pairs = {seed: _pair(gain, found["values"]) for seed, found in seeds.items()}
        known = {seed: pair for seed, pair in pairs.items() if pair is not None}
        if known:
            ahead = np.array([of_model for of_model, _ in known.values()])  # (S, P)
            behind = np.array([of_other for _, of_other in known.values()])
            by_seed = {seed: round(float(np.mean(a - b)), 4) for seed, (a, b) in known.items()}
            means = {"mean_of_model": float(ahead.mean()), "mean_of_other": float(behind.mean())}
            gains.append({**gain._asdict(), **interval(ahead - behind), **means, "by_seed": by_seed})
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


def _pair(gain: Gain, values: Values) -> tuple[np.ndarray, np.ndarray] | None:
    found = []
    for model, measure in ((gain.model, gain.measure), (gain.over, gain.over_measure)):
        labels = [label for label in values.get(model, {}) if label.startswith(measure)]
        if not labels:
            return None
        found.append(np.array(values[model][labels[0]]))
    return found[0], found[1]


def interval(differences: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The mean of S x P differences, with the 95 % interval of a bootstrap over both.

    Example:
        >>> interval(np.full((3, 10), 0.5))
        {'mean': 0.5, 'low': 0.5, 'high': 0.5}
    """
    rng = np.random.default_rng(seed)
    seeds, problems = differences.shape
    means = [
        differences[np.ix_(rng.integers(seeds, size=seeds), rng.integers(problems, size=problems))].mean()
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(GAINS), help=f"some of {', '.join(GAINS)} (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which seeds (0 1 2)")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="these stages alone (all)")
    parser.add_argument("--next", action="store_true", help="the first that is missing, and no more")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "real", help="one folder per seed goes here")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of real.json")
    parser.add_argument(
        "-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="as `posttrain run -o`"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.recipes) - GAINS.keys()):
        parser.error(f"no gains are known of recipe {unknown[0]}, expected some of {', '.join(GAINS)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
