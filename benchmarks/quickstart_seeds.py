"""Runs the quickstart for several seeds and holds its claims against the held-out problems.

Each seed runs into its own folder, so a second call takes what is done from the store. What must hold, else exit 1:

1. the gains in sampled accuracy of sft (over base), dpo and grpo (over sft): the whole 95 % interval is above 0;
2. the reward model orders at least 80 % of held-out pairs as the checker does;
3. for sft, the majority of 8 and the best of 8 by the reward model are above sampled accuracy;
4. no model was trained on a held-out problem.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record
import render

ROOT = Path(__file__).resolve().parent.parent
GAINS = ("sft", "dpo", "grpo")
RM_ACCURACY = 0.8
RM_LABEL = "best_of_n(n=8, scorer=rm)"
ORACLE_LABEL = "best_of_n(n=8, scorer=correct) (oracle)"
MEASURES = {
    "sampled": "sampled",
    "greedy": "greedy",
    "majority": "majority",
    "best_of_n_rm": RM_LABEL,
    "best_of_n_oracle": ORACLE_LABEL,
}


def main() -> int:
    options = _options()
    seeds = {str(seed): one_seed(seed, options.recipe, options.runs_dir, options.override) for seed in options.seeds}
    missed = [f"seed {seed}: {what}" for seed, found in seeds.items() for what in unmet(found)]
    results = {"recipe": Path(options.recipe).name, "overrides": options.override, "seeds": seeds, "missed": missed}
    print(record.write("quickstart_seeds", results, options.out), file=sys.stderr)
    print(render.quickstart_table(results))
    for what in missed:
        print(f"error: missed: {what}", file=sys.stderr)
    return 1 if missed else 0


def one_seed(seed: int, recipe: str, runs_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs the recipe with a seed and collects its figures."""
    run = run_seed(seed, recipe, runs_dir, overrides)
    return collect(run["eval"].details, {name: artifact.manifest for name, artifact in run.items()})


def run_seed(seed: int, recipe: str, runs_dir: Path, overrides: list[str], only: Sequence[str] = ()) -> Any:
    """Runs a recipe, or some of its stages, with a seed in a folder of its own, and tells each stage as it ends."""
    import posttrain_plugins as pp
    from posttrain_plugins.recipe.run.observer import Observer

    class Told(Observer):
        def finished(self, stage: Any, artifact: Any, is_cached: bool) -> None:
            took = "cached" if is_cached else f"{artifact.manifest['seconds']:.0f} s"
            print(f"seed {seed}: {stage.id} ({took})", file=sys.stderr, flush=True)

    folder = runs_dir / f"seed-{seed}"
    return pp.run(recipe, [f"seed={seed}", *overrides], runs_dir=folder, only=only, observer=Told())


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
        if gain is None or gain["low"] <= 0:
            yield f"{name}'s gain over {models[name]['parent']} is {gain}, expected an interval above 0"
    if found["rm_eval_accuracy"] < RM_ACCURACY:
        yield f"reward model on held-out pairs is {found['rm_eval_accuracy']:.3f}, expected at least {RM_ACCURACY}"
    sampled = models["sft"]["sampled"]["mean"]
    for name in ("majority", "best_of_n_rm"):
        if models["sft"][name]["mean"] <= sampled:
            yield f"sft's {name} is {models['sft'][name]['mean']:.3f}, expected above sampled accuracy {sampled:.3f}"
    for name, count in found["overlap"].items():
        if count:
            yield f"{name} was trained on {count} of the held-out problems, expected none"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which seeds (0 1 2)")
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "quickstart.yaml"), help="with the same stages")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "seeds", help="one folder per seed goes here")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of quickstart_seeds.json")
    parser.add_argument(
        "-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="as `posttrain run -o`"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
