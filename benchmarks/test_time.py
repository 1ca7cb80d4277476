"""Test-time strategies on the tiny world, for several seeds: accuracy, tokens, and who beats best of n at its price.

Runs the recipe `test_time` (SFT model, reward model, process reward model; 300 held-out problems); what stands in the
results file is not run again (`series.py`). Best of n by the PRM for n = 1, 2, 4 ... 16 comes from one log; at the
tokens that a search strategy spends, its accuracy is read off between two of these points. What must hold, else exit 1:

1. the majority of 8 and the best of 8 by either reward model are above sampled accuracy, on every seed;
2. votes weighted by the PRM reach greedy, on the mean over seeds.

    python benchmarks/test_time.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import series
from result_tables.strategies import test_time_table

BASELINE = "best/prm"
ABOVE_SAMPLED = ("self_consistency(n=8)", "best_of_n(n=8, scorer=rm)", "best_of_n(n=8, scorer=prm)")
WEIGHTED = "best_of_n(n=8, scorer=prm, weighted=True)"


def one_seed(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the recipe with a seed and collects its figures."""
    told = series.Told(seed)
    run = series.run_seed(told, "test_time", options.runs_dir, options.override)
    found = collect(run["eval"].details, {name: artifact.manifest for name, artifact in run.items()})
    return {**found, "made": told.made}


def over_seeds(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The strategies over the seeds, and what the figures miss of what must hold."""
    strategies = summary(list(seeds.values()))
    return {"strategies": strategies, "missed": list(unmet({"seeds": seeds, "strategies": strategies}))}


def collect(details: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each way of answering with its accuracy and price, and the price of best of n at the same tokens."""
    measures = details["models"]["sft"]["measures"]
    metric = details["metric"]
    curves = measures["sampled"]["at_k"]
    baseline = [(point["tokens"], point["mean"]) for point in curves[BASELINE].values()]
    ways = {}
    for name, found in measures.items():
        tokens = found["tokens_per_problem"]
        ways[name] = {
            **found["rewards"][metric],
            "tokens": tokens,
            "calls": found["calls"],
            "seconds": found["seconds"],
            "errors": len(found["errors"]),
            "is_pareto": name in details["pareto"]["sft"],
            "best_of_n_at_its_tokens": at_tokens(baseline, tokens),
        }
    judged = {name: manifests[name]["metrics"] for name in ("rm", "prm")}
    return {
        "problems": details["problems"],
        "overlap": details["overlap"],
        "ways": ways,
        "curves": curves,
        "pass_at": measures["sampled"]["pass_at"],
        "judges": {
            name: {
                key: m[key]
                for key in ("eval_accuracy", "pair_accuracy", "calibration_error", "eval_wrong_found")
                if key in m
            }
            for name, m in judged.items()
        },
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
    }


def at_tokens(points: Sequence[tuple[float, float]], tokens: float) -> float:
    """A curve of (tokens, accuracy) read at `tokens`: a straight line between two points, flat beyond the ends."""
    ordered = sorted(points)
    if tokens <= ordered[0][0]:
        return ordered[0][1]
    for (low, before), (high, after) in pairwise(ordered):
        if tokens <= high:
            return before + (after - before) * (tokens - low) / (high - low)
    return ordered[-1][1]


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, the lowest and highest seed, and on how many seeds best of n at the same tokens is beaten."""
    found = {}
    for name in seeds[0]["ways"]:
        rows = [seed["ways"][name] for seed in seeds]
        found[name] = {
            "mean": fmean(row["mean"] for row in rows),
            "lowest": min(row["mean"] for row in rows),
            "highest": max(row["mean"] for row in rows),
            "low": min(row["low"] for row in rows),
            "high": max(row["high"] for row in rows),
            "tokens": fmean(row["tokens"] for row in rows),
            "best_of_n_at_its_tokens": fmean(row["best_of_n_at_its_tokens"] for row in rows),
            "beats_best_of_n": sum(row["mean"] > row["best_of_n_at_its_tokens"] for row in rows),
            "pareto": sum(row["is_pareto"] for row in rows),
            "seeds": len(rows),
        }
    return found


def unmet(results: Mapping[str, Any]) -> Iterator[str]:
    """What the figures miss of what must hold."""
    for seed, found in results["seeds"].items():
        sampled = found["ways"]["sampled"]["mean"]
        for name in ABOVE_SAMPLED:
            if found["ways"][name]["mean"] <= sampled:
                yield f"seed {seed}: {name} is {found['ways'][name]['mean']:.3f}, not above sampled {sampled:.3f}"
        for name, count in found["overlap"].items():
            if count:
                yield f"seed {seed}: {name} was trained on {count} of the held-out problems"
    ways = results["strategies"]
    if ways[WEIGHTED]["mean"] < ways["greedy"]["mean"]:
        yield f"votes weighted by the PRM: {ways[WEIGHTED]['mean']:.3f}, below greedy {ways['greedy']['mean']:.3f}"


ALONE = series.Alone("test_time", one_seed, over_seeds, test_time_table)


if __name__ == "__main__":
    raise SystemExit(series.go({"test_time": ALONE}, series.parser(__doc__).parse_args()))
