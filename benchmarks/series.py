"""What the measurements of several seeds share: one runs folder per seed, what is next, what may run, and the pooling.

All recipes of a seed run in one folder, `runs/seeds/seed-N`, so that equal stages, base and SFT first, are made once
and taken from the store; which stages were made for a recipe's seed is told with its figures (`made`).

The exam of a recipe is the same for all seeds, so a gain's interval is of a bootstrap that draws problems, the same for
all seeds, and seeds: 95 %, paired by problem. Of three seeds that differ much it is too narrow (benchmarks/README.md
has figures), so each seed's gain stands beside it.

1. What stands in a results file is not run again; the file is written after each seed of each recipe, so a series that
   was stopped goes on.
2. The recipe that has the fewest seeds is next: a series that ends early has as many of each as could be.
3. A machine whose load is above 3 for each core gives no figures; above 1.5 they are marked where they are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import record
from result_tables.text import TUNED

import posttrain_plugins as pp
from posttrain_plugins.errors import Interrupted
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.recipe.run.run import Run

__all__ = [
    "DEVELOPMENT",
    "REFUSED",
    "REPORTED",
    "RUNS",
    "SETTINGS",
    "TUNED",
    "Alone",
    "Series",
    "Told",
    "Values",
    "collect",
    "gains_of",
    "go",
    "measure",
    "of_files",
    "of_the_model",
    "parser",
    "pending",
    "pooled",
    "quiet",
    "run_seed",
    "settings_of",
    "stands",
    "values_of",
    "whole",
]

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "seeds"
REPORTED = (0, 1, 2)
"""The seeds that results are reported of: no setting is chosen on them."""
DEVELOPMENT = ("datasets.heldout.seed=5",)
"""Other held-out problems than those that are reported; none is in both."""
REFUSED = 3.0
"""Load above which nothing is measured, for each core; above `result_tables.text.BUSY` figures are marked."""
DRAWS = 10_000

UNRECORDED = "not recorded"
BEFORE = "not recorded, before seeds 1 and 2 were run"
FIRST = "nothing: the first that were measured"
ELSEWHERE = "with other held-out problems than these"
SETTINGS: dict[str, dict[str, str]] = {
    "graph": {"all": "development lists, seed 10"},
    "human_feedback": {"rm": f"seed 7, {ELSEWHERE}", "others": BEFORE},
    "offline": {"kto": f"seed 11, {ELSEWHERE}", "others": BEFORE},
    "star": {"all": f"seed 11, {ELSEWHERE}"},
    **{
        name: {"all": "seeds 10 and 11, after the exam had been seen with fewer steps of the value model"}
        for name in ("search", "value_guided")
    },
    "tree": {"all": "development problems, seed 10"},
    "r1": {"all": "seeds 10 and 11, after the first settings' seeds 0, 1 and 2 had been seen"},
    "rlaif": {"grpo": "seeds 10 and 11, after the first settings' seeds 0, 1 and 2 had been seen", "others": BEFORE},
    "iterated_rlhf": {"all": "rollouts of seed 11, after the first settings' seeds 0 and 1 had been seen"},
    "full_deepspeed": {"all": FIRST},
    "lora": {"all": FIRST},
    "my_own_data": {"all": FIRST},
    **{name: {"all": BEFORE} for name in ("iterative_dpo", "qlora", "raft", "rest", "rlhf_ppo", "rlhf_ppo_qlora")},
    "real/chain": {"all": "development problems, seeds 10 and 11"},
    "real/react": {"all": "development problems, seeds 13, 14 and 15, of GRPO seed 13"},
    "real/ppo": {"all": FIRST},
    "real/qlora": {"all": FIRST},
    "real/strategies": {"all": FIRST},
    "real/reflection": {"all": FIRST},
    "real/forgetting": {"all": FIRST},
}
"""Recipe -> model, `all` or `others` -> what its settings were chosen on. Whoever chooses anew on development problems
(`recipes.py --development`) says so here, and measures again."""

Values = dict[str, dict[str, list[float]]]
"""Model -> measure -> the metric of each problem."""


class Told(Observer):
    """Tells each stage of a seed as it ends, and remembers which of them ran."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.made: list[str] = []

    def finished(self, stage: Any, artifact: Any, is_cached: bool) -> None:
        took = "cached" if is_cached else f"{artifact.manifest['seconds']:.0f} s"
        if not is_cached:
            self.made.append(stage.id)
        print(f"seed {self.seed}: {stage.id} ({took})", file=sys.stderr, flush=True)


def run_seed(told: Told, recipe: str, runs_dir: Path, overrides: Sequence[str], only: Sequence[str] = ()) -> Run:
    """Runs a recipe of `recipes/`, or some of its stages, with a seed in that seed's folder."""
    file, folder = ROOT / "recipes" / f"{recipe}.yaml", runs_dir / f"seed-{told.seed}"
    return pp.run(file, [f"seed={told.seed}", *overrides], runs_dir=folder, only=only, observer=told)


def whole(run: Run, told: Told) -> dict[str, Any]:
    """Each problem's figures in every evaluation, and the stages that were not in the store."""
    values: Values = {}
    for artifact in run.values():
        if (artifact.folder / "samples.jsonl").is_file():
            for model, measures in values_of(artifact.folder / "samples.jsonl", artifact.details["metric"]).items():
                values.setdefault(model, {}).update(measures)
    return {"values": values, "made": told.made}


def values_of(samples: Path, metric: str) -> Values:
    """The mean of each problem's completions, in the order of the problems."""
    scores: dict[str, dict[str, dict[int, list[float]]]] = {}
    for line in samples.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        of_measure = scores.setdefault(row["model"], {}).setdefault(row["measure"], {})
        of_measure.setdefault(int(row["problem"]), []).append(row["rewards"][metric])
    problems = {problem for measures in scores.values() for of in measures.values() for problem in of}
    for model, measures in scores.items():
        for name, of in measures.items():
            if lacking := problems - of.keys():
                raise ValueError(f"{name} of {model} has no answer to problem {min(lacking)}: it cannot be paired")
    return {
        model: {name: [float(np.mean(of[problem])) for problem in sorted(of)] for name, of in measures.items()}
        for model, measures in scores.items()
    }


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


def pooled(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], draw_seed: int = 0) -> dict[str, Any]:
    """The gain of one model over another, over all seeds, with its interval, and by seed.

    Args:
        pairs: of each seed the metric of each problem, of the model and of the other; equally many in all.
        draw_seed: of the bootstrap.

    Example:
        >>> found = pooled({"0": ([1.0, 1.0], [0.5, 0.5]), "1": ([1.0, 1.0], [0.5, 0.5])})
        >>> found["mean"], found["low"], found["high"], found["by_seed"]
        (0.5, 0.5, 0.5, {'0': 0.5, '1': 0.5})
    """
    ahead = np.array([of_model for of_model, _ in pairs.values()])  # (S, P)
    behind = np.array([of_other for _, of_other in pairs.values()])
    differences = ahead - behind
    rng = np.random.default_rng(draw_seed)
    seeds, problems = differences.shape
    means = [
        differences[np.ix_(rng.integers(seeds, size=seeds), rng.integers(problems, size=problems))].mean()
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "mean": float(differences.mean()),
        "low": float(low),
        "high": float(high),
        "mean_of_model": float(ahead.mean()),
        "mean_of_other": float(behind.mean()),
        "by_seed": {seed: round(float(row.mean()), 4) for seed, row in zip(pairs, differences, strict=True)},
    }


def gains_of(seeds: Mapping[str, Mapping[str, Any]], measure: str = "sampled") -> list[dict[str, Any]]:
    """Each model's pooled gain over its parent; empty where a seed has not each problem's figures."""
    if not seeds or any("values" not in one for one in seeds.values()):
        return []
    models = next(iter(seeds.values()))["models"]
    gains = []
    for model, told in models.items():
        if (over := told["parent"]) is None:
            continue
        pairs = {seed: (one["values"][model][measure], one["values"][over][measure]) for seed, one in seeds.items()}
        gains.append({"model": model, "over": over, "measure": measure, **pooled(pairs)})
    return gains


def settings_of(recipe: str) -> dict[str, str]:
    """Where the settings of a recipe's models were chosen.

    Example:
        >>> settings_of("offline")["kto"]
        'seed 11, with other held-out problems than these'
    """
    return SETTINGS.get(recipe, {"all": UNRECORDED})


def of_the_model(settings: Mapping[str, str], model: str) -> str:
    """What the settings of a model were chosen on, of a recipe's.

    Example:
        >>> of_the_model({"kto": "tuned on what it reports", "others": "not recorded"}, "dpo")
        'not recorded'
    """
    return settings.get(model) or settings.get("others") or settings.get("all") or UNRECORDED


def pending(
    names: Sequence[str], seeds: Sequence[str], done: Callable[[str], Collection[str]]
) -> Iterator[tuple[str, str]]:
    """What is still to be measured, of the recipe that has the fewest seeds first, and of equals the first named.

    Example:
        >>> have = {"grpo": ["0", "1"], "star": ["0"], "raft": []}
        >>> list(pending(list(have), ["0", "1"], have.get))
        [('raft', '0'), ('star', '1'), ('raft', '1')]
    """
    stand = {name: done(name) for name in names}
    lacks = {name: [seed for seed in seeds if seed not in stand[name]] for name in names}
    turns = [
        (len(seeds) - len(missing) + turn, name, seed)
        for name, missing in lacks.items()
        for turn, seed in enumerate(missing)
    ]
    # stable: of recipes with equally many seeds the one that was named first
    yield from ((name, seed) for _, name, seed in sorted(turns, key=lambda turn: turn[0]))


def stands(one: Mapping[str, Any], after: str = "") -> bool:
    """Tell whether a seed counts as measured: with `after`, which is a commit, only from it on and on a clean tree."""
    commit = str(one.get("commit", ""))
    return not after or ("-" not in commit and record.is_ancestor(after, commit))


def quiet(
    wait_s: float,
    load: Callable[[], float] = lambda: os.getloadavg()[0],
    cores: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait for a load that is not refused, and return it.

    Args:
        wait_s: seconds at most.
        load: what gives the load of the machine.
        cores: that this process may use.
        sleep: what waits.

    Raises:
        SystemExit: it is still above 3 for each core.
    """
    limit = REFUSED * (cores or record.cores())
    waited = 0.0
    while (now := load()) > limit:
        if waited >= wait_s:
            raise SystemExit(
                f"error: the machine is busy: load {now:.1f}, expected at most {limit:.0f}, {REFUSED:.0f} for each core"
                "\n\nhint: wait until it is quiet, or give it longer: --wait-minutes 120"
            )
        sleep(20.0)
        waited += 20.0
    return now


@dataclass(frozen=True)
class Series:
    """What is measured of recipes, and where it is kept.

    Args:
        standing: the seeds of a recipe that its results file holds.
        one: runs a recipe with a seed and returns its figures.
        keep: takes a recipe, a seed and its figures, and writes them into the results file.
    """

    standing: Callable[[str], Mapping[str, Mapping[str, Any]]]
    one: Callable[[str, str], dict[str, Any]]
    keep: Callable[[str, str, dict[str, Any]], None]


def measure(series: Series, names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Measure what lacks, each seed with its commit, load and processor, and return what failed.

    One that fails stops none of the others; with `options.next` one is measured and no more.

    Raises:
        SystemExit: the machine is too busy, or the run was stopped by a signal.
    """
    failed = []
    loaded = record.commit()  # HEAD may move, when results are committed: what runs is what was loaded in the beginning

    def done(name: str) -> list[str]:
        return [seed for seed, one in series.standing(name).items() if stands(one, options.after)]

    for name, seed in pending(names, [str(seed) for seed in options.seeds], done):
        before = quiet(60 * options.wait_minutes)
        print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
        try:
            figures = series.one(name, seed)
            if record.commit().endswith("-dirty") and not loaded.endswith("-dirty"):
                loaded += "-dirty"
            load = [round(before, 2), round(os.getloadavg()[0], 2)]
            series.keep(name, seed, {"commit": loaded, "load_average": load, "cpu": record.cpu(), **figures})
        except Interrupted as stop:  # somebody wants it to end: not the next one either
            print(stop.message, file=sys.stderr, flush=True)
            raise SystemExit(stop.exit_code) from stop
        except Exception as error:  # of whatever a recipe runs: the night goes on without it
            failed.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
            print(f"error: {failed[-1]}", file=sys.stderr, flush=True)
            continue
        if options.next:
            break
    return failed


@dataclass(frozen=True)
class Alone:
    """A recipe that has a results file of its own.

    Args:
        file: its name.
        one: runs the recipe with a seed and returns its figures.
        over_seeds: what the seeds say together; `missed`, if there, is what does not hold.
        table: prints the results.
    """

    file: str
    one: Callable[[int, argparse.Namespace], dict[str, Any]]
    over_seeds: Callable[[dict[str, Any]], dict[str, Any]]
    table: Callable[[Mapping[str, Any]], str]


def of_files(
    recipes: Mapping[str, Alone], options: argparse.Namespace, also: Callable[[str], None] = lambda name: None
) -> Series:
    """The series of recipes that have a results file each, written after each seed; then `also` is called."""

    def standing(name: str) -> dict[str, dict[str, Any]]:
        results, made_on = record.earlier(recipes[name].file, options.override, options.out)
        return {seed: {**made_on, **one} for seed, one in results.get("seeds", {}).items()}

    def keep(name: str, seed: str, figures: dict[str, Any]) -> None:
        seeds = dict(sorted({**standing(name), seed: figures}.items(), key=lambda one: int(one[0])))
        about = {"recipe": name, "overrides": options.override, "settings": settings_of(name)}
        results = {**about, "seeds": seeds}
        record.write(recipes[name].file, results, options.out)  # first: what was measured is not lost with its summary
        results |= recipes[name].over_seeds(seeds)
        print(record.write(recipes[name].file, results, options.out), file=sys.stderr)
        print(recipes[name].table(results), flush=True)
        also(name)

    return Series(standing, lambda name, seed: recipes[name].one(int(seed), options), keep)


def go(
    recipes: Mapping[str, Alone], options: argparse.Namespace, also: Callable[[str], None] = lambda name: None
) -> int:
    """Measure what lacks of recipes with a file each; 1 where one failed, or a file says that a claim does not hold."""
    failed = measure(of_files(recipes, options, also), list(recipes), options)
    for name in recipes:
        results, _ = record.earlier(recipes[name].file, options.override, options.out)
        # not what the file says of them: a claim may be newer, or the run may have been stopped before they were judged
        told = recipes[name].over_seeds(results["seeds"]) if results.get("seeds") else {}
        for what in told.get("missed", ()):
            failed.append(f"{name}: {what}")
            print(f"error: missed: {failed[-1]}", file=sys.stderr)
    return 1 if failed else 0


def parser(doc: str | None, runs_dir: Path = RUNS) -> argparse.ArgumentParser:
    """The options that every series has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seeds", type=int, nargs="+", default=list(REPORTED), help="which seeds (0 1 2)")
    made.add_argument("--next", action="store_true", help="one seed of what has the fewest, and no more")
    made.add_argument(
        "--after", default="", metavar="COMMIT", help="measure again what was measured before this commit, or dirty"
    )
    made.add_argument("--wait-minutes", type=float, default=30.0, help="at most, for a machine that is too busy (30)")
    made.add_argument("--runs-dir", type=Path, default=runs_dir, help="one folder per seed goes here")
    made.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the results file")
    made.add_argument(
        "-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="as `posttrain run -o`"
    )
    return made
