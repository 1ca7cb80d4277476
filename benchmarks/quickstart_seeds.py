"""Runs the quickstart for several seeds and holds its claims against the held-out problems.

What stands in the results file is not run again (`series.py`). What must hold, else exit 1:

1. the gains in sampled accuracy of sft (over base), dpo and grpo (over sft): the whole 95 % interval is above 0;
2. the reward model orders at least 80 % of held-out pairs as the checker does;
3. for sft, the majority of 8 and the best of 8 by the reward model are above sampled accuracy;
4. no model was trained on a held-out problem;
5. best of 8 by a reward model is below one sample only where `evaluate` says that it is over-optimised;
6. best of 8 of the newer models by the reward model that was trained again, on their completions too, is above best of
   8 by the first one, on the mean over seeds.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import series
from result_tables.recipes import quickstart_table

GAINS = ("sft", "dpo", "grpo")
RM_ACCURACY = 0.8
RM_LABEL = "best_of_n(n=8, scorer=rm)"
NEWER_RM_LABEL = "best_of_n(n=8, scorer=newer_rm)"
NEWER = ("dpo", "grpo")
ORACLE_LABEL = "best_of_n(n=8, scorer=correct) (oracle)"
MEASURES = {
    "sampled": "sampled",
    "greedy": "greedy",
    "majority": "majority",
    "best_of_n_rm": RM_LABEL,
    "best_of_n_newer_rm": NEWER_RM_LABEL,
    "best_of_n_oracle": ORACLE_LABEL,
}


def one_seed(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the recipe with a seed and collects its figures."""
    told = series.Told(seed)
    run = series.run_seed(told, "quickstart", options.runs_dir, options.override)
    found = collect(run["eval"].details, {name: artifact.manifest for name, artifact in run.items()})
    return {**found, **series.whole(run, told)}


def over_seeds(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The pooled gains, and what is missed of what must hold."""
    missed = [f"seed {seed}: {what}" for seed, found in seeds.items() for what in unmet(found)]
    newer = [found for found in seeds.values() if "best_of_n_newer_rm" in found["models"]["dpo"]]
    for name in NEWER if newer else ():
        again, first = (
            fmean(found["models"][name][key]["mean"] for found in newer)
            for key in ("best_of_n_newer_rm", "best_of_n_rm")
        )
        if again <= first:
            missed.append(f"{name}: best of 8 by the newer reward model is {again:.3f}, by the first one {first:.3f}")
    return {"gains": series.gains_of(seeds), "missed": missed}


def collect(details: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one seed, from the evaluation's details and every stage's manifest."""
    metric = details["metric"]
    models: dict[str, Any] = {}
    for name, found in details["models"].items():
        measures = found["measures"]
        models[name] = {key: measures[label]["rewards"][metric] for key, label in MEASURES.items()}
        models[name]["parent"] = found["gain"].get("over")
        models[name]["gain"] = found["gain"].get("measures", {}).get("sampled")
        models[name]["pass_at"] = measures["sampled"]["pass_at"]
        models[name]["over_optimised"] = measures["sampled"]["over_optimised"]
    return {
        "problems": details["problems"],
        "overlap": details["overlap"],
        "models": models,
        "rm_eval_accuracy": manifests["rm"]["metrics"]["eval_accuracy"],
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
        "train_s": {n: m["metrics"]["train_s"] for n, m in manifests.items() if "train_s" in m["metrics"]},
    }


def unmet(found: Mapping[str, Any]) -> Iterator[str]:
    """What one seed misses of what must hold."""
    models = found["models"]
    for name in GAINS:
        gain = models[name]["gain"]
        if gain is None or not gain["low"] > 0:
            yield f"{name}'s gain over {models[name]['parent']} is {gain}, expected an interval above 0"
    if found["rm_eval_accuracy"] < RM_ACCURACY:
        yield f"reward model on held-out pairs is {found['rm_eval_accuracy']:.3f}, expected at least {RM_ACCURACY}"
    sampled = models["sft"]["sampled"]["mean"]
    for name in ("majority", "best_of_n_rm"):
        if models["sft"][name]["mean"] <= sampled:
            yield f"sft's {name} is {models['sft'][name]['mean']:.3f}, expected above sampled accuracy {sampled:.3f}"
    is_older = any("over_optimised" not in of_model for of_model in models.values())
    if is_older:
        yield "measured before a reward model was trained again: measure anew, with --after"
    for name, of_model in models.items() if not is_older else ():
        for scorer, key in (("rm", "best_of_n_rm"), ("newer_rm", "best_of_n_newer_rm")):
            best, one = of_model[key]["mean"], of_model["sampled"]["mean"]
            if best < one and scorer not in of_model["over_optimised"]:
                yield f"{name}'s best of 8 by {scorer} is {best:.3f}, below one sample {one:.3f}, and nothing says so"
    for name, count in found["overlap"].items():
        if count:
            yield f"{name} was trained on {count} of the held-out problems, expected none"


ALONE = series.Alone("quickstart_seeds", one_seed, over_seeds, quickstart_table)


if __name__ == "__main__":
    raise SystemExit(series.go({"quickstart": ALONE}, series.parser(__doc__).parse_args()))
