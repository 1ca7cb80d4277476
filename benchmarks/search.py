"""Strategies on tasks where search pays, for several seeds: accuracy against tokens, beside greedy and best of n.

Three recipes, each a task of its strategies' shape: `search`, chains whose likeliest steps are often wrong; `tree`, a
way to be looked for; `graph`, parts that are solved apart and merged. Of each strategy: accuracy, tokens, its gain over
greedy with the interval over problems and seeds, and the best of its draws by a scorer (of `tree` and `graph` a rule)
for at most as many tokens: the curve of best of n, read off between two points, and the best of fewer where more makes
it worse. What stands in the results files is not run again (`series.py`).
What must hold, else exit 1:

1. `search`: greedy is at most .75 on every seed; four strategies are above it with the whole interval, the best by .10;
   best of 8 by the value function is above one sample; the search that it guides is above one sample, not below greedy,
   and above best of n by the reward model at as many tokens;
2. `tree`: tree of thoughts and MCTS, each in one of its settings, are above greedy with the whole interval, and above
   best of n by the same rule at as many tokens;
3. `graph`: graph of thoughts is so, too.

    python benchmarks/search.py --seeds 0 1 2
    python benchmarks/search.py --only search --seeds 0
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import series
import test_time
from result_tables.strategies import search_table

BASELINES = {"search": ("rm", "prm"), "tree": ("ahead",), "graph": ("errors",)}
"""Recipe -> the verifiers whose best of n stands beside each strategy."""
GREEDY_AT_MOST, ABOVE_GREEDY, BEST_GAIN = 0.75, 4, 0.10
FOLLOWS_VALUE, GUIDED_BY_VALUE = "best_of_n(n=8, scorer=value)", "value_guided_search("
MUST_SEARCH = {"tree": ("tree_of_thoughts(", "mcts("), "graph": ("graph_of_thoughts(",)}


def one_seed(recipe: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a recipe with a seed and collects its figures."""
    told = series.Told(seed)
    run = series.run_seed(told, recipe, options.runs_dir, options.override)
    details = run["eval"].details
    measures, metric = details["models"]["sft"]["measures"], details["metric"]
    curves = measures["sampled"]["at_k"]
    best = {name: [(p["tokens"], p["mean"]) for p in curves[f"best/{name}"].values()] for name in BASELINES[recipe]}
    ways = {
        name: {
            **found["rewards"][metric],
            "tokens": found["tokens_per_problem"],
            "errors": len(found["errors"]),
            "best_at_its_tokens": {by: best_up_to(points, found["tokens_per_problem"]) for by, points in best.items()},
        }
        for name, found in measures.items()
    }
    return {
        "problems": details["problems"],
        "overlap": details["overlap"],
        "ways": ways,
        "pass_at": measures["sampled"]["pass_at"],
        "metrics": {name: artifact.manifest["metrics"] for name, artifact in run.items() if name != "eval"},
        "seconds": {name: artifact.manifest["seconds"] for name, artifact in run.items()},
        **series.whole(run, told),
    }


def over_seeds(recipe: str, seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each strategy over the seeds, its gain over greedy and over one sample, and what is missed."""
    first = next(iter(seeds.values()))
    # a vote over the samples has no completions of its own
    known, strategies = first["values"]["sft"].keys(), {}
    for name in first["ways"]:
        found = [one["ways"][name] for one in seeds.values()]
        strategies[name] = {
            "mean": fmean(one["mean"] for one in found),
            "tokens": fmean(one["tokens"] for one in found),
            "best_at_its_tokens": {
                by: fmean(one["best_at_its_tokens"][by] for one in found) for by in found[0]["best_at_its_tokens"]
            },
            **{f"over_{one}": _gain(seeds, name, one) for one in ("greedy", "sampled") if name in known - {one}},
        }
    results = {"seeds": seeds, "strategies": strategies}
    return {"strategies": strategies, "missed": list(unmet(recipe, results))}


def best_up_to(points: Sequence[tuple[float, float]], tokens: float) -> float:
    """The best of a curve of (tokens, accuracy) for at most `tokens`: best of fewer, where more makes it worse."""
    return max([mean for spent, mean in points if spent <= tokens] + [test_time.at_tokens(points, tokens)])


def unmet(recipe: str, results: Mapping[str, Any]) -> Iterator[str]:
    """What the figures miss of what must hold."""
    ways = {name: way for name, way in results["strategies"].items() if not name.endswith("(oracle)")}
    for seed, one in results["seeds"].items():
        for name, count in one["overlap"].items():
            if count:
                yield f"seed {seed}: {name} was trained on {count} of the held-out problems"
    gains = {name: way["over_greedy"] for name, way in ways.items() if "over_greedy" in way and name != "sampled"}
    for start in MUST_SEARCH.get(recipe, ()):
        found = {name: gain for name, gain in gains.items() if name.startswith(start)}
        best = {name: max(ways[name]["best_at_its_tokens"].values()) for name in found}
        # one setting has to be above both
        if not any(gain["low"] > 0 and ways[name]["mean"] > best[name] for name, gain in found.items()):
            told = "; ".join(f"{name} {ways[name]['mean']:.3f}, best of n {best[name]:.3f}" for name in found)
            yield f"{start.rstrip('(')} is not above greedy and best of n: {_told(found)}; {told or 'none'}"
    if recipe == "search":
        yield from _unmet_of_search(results, ways, gains)


def _unmet_of_search(results: Mapping[str, Any], ways: Mapping[str, Any], gains: Mapping[str, Any]) -> Iterator[str]:
    for seed, one in results["seeds"].items():
        if (greedy := one["ways"]["greedy"]["mean"]) > GREEDY_AT_MOST:
            yield f"seed {seed}: greedy is {greedy:.3f}, expected at most {GREEDY_AT_MOST}"
    above = [name for name, gain in gains.items() if gain["low"] > 0]
    if len(above) < ABOVE_GREEDY:
        yield f"{len(above)} strategies are above greedy, expected {ABOVE_GREEDY}: {', '.join(above)}"
    if (best := max(gain["mean"] for gain in gains.values())) < BEST_GAIN:
        yield f"the best is {best:+.3f} over greedy, expected {BEST_GAIN:+.2f}"
    if not (over := ways[FOLLOWS_VALUE]["over_sampled"])["low"] > 0:
        yield f"{FOLLOWS_VALUE} is {over['mean']:+.3f} over one sample, from {over['low']:+.3f}"
    guided = [name for name in ways if name.startswith(GUIDED_BY_VALUE)]
    if not guided:
        yield "no search is guided by the value function"
    for name in guided:
        way = ways[name]
        if not way["over_sampled"]["low"] > 0:
            yield f"{name} is {way['over_sampled']['mean']:+.3f} over one sample"
        if not way["over_greedy"]["high"] >= 0:
            yield f"{name} is {way['over_greedy']['mean']:+.3f} over greedy"
        if way["mean"] <= (by_rm := way["best_at_its_tokens"]["rm"]):
            yield f"{name} is {way['mean']:.3f}, best of n by the reward model at as many tokens {by_rm:.3f}"


def _gain(seeds: Mapping[str, Mapping[str, Any]], name: str, other: str) -> dict[str, Any]:
    values = {seed: one["values"]["sft"] for seed, one in seeds.items()}
    return series.pooled({seed: (of_seed[name], of_seed[other]) for seed, of_seed in values.items()})


def _told(found: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{name} {gain['mean']:+.3f} from {gain['low']:+.3f}" for name, gain in found.items()) or "none"


RECIPES = {
    name: series.Alone(name, partial(one_seed, name), partial(over_seeds, name), search_table) for name in BASELINES
}


def main() -> int:
    parser = series.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="which recipes (all)")
    options = parser.parse_args()
    return series.go({name: RECIPES[name] for name in options.only}, options)


if __name__ == "__main__":
    raise SystemExit(main())
