"""Puts tables made from `benchmarks/results/*.json` into README.md and docs/*.md: no figure there is typed by hand.

A table stands between `<!-- results:NAME -->` and `<!-- /results -->`, NAME being a results file; a marker whose file
is missing is left alone. The header of each recipe gets its figures too, behind the line that names their file.
`--check` changes nothing and exits 1 where a figure is not what its results give; it tells how many have none yet.

    python benchmarks/render.py
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import levels

__all__ = [
    "TABLES",
    "adapters_table",
    "critic_table",
    "doubts",
    "faults_table",
    "forgetting_table",
    "gpu_table",
    "gradient_checkpointing_table",
    "grpo_real_table",
    "kills_table",
    "memory_plan_table",
    "methods_table",
    "overhead_table",
    "ppo_memory_table",
    "process_rewards_table",
    "quickstart_table",
    "real_kills_table",
    "real_table",
    "recipe_header",
    "recipe_table",
    "render",
    "render_recipe",
    "search_table",
    "share_prompts_table",
    "test_time_table",
    "value_table",
]

ROOT = Path(__file__).resolve().parent.parent
BUSY = 1.5
"""Load above which a figure is marked, for each core; the script itself makes 1."""
LEVEL = 0.95
"""Of the reward, that PPO's critics are compared at."""
SEEDS = 3
"""Of fewer it is said how many."""
TUNED = "tuned on what it reports"
HEADER = re.compile(r"(# Results: benchmarks/results/(?P<name>\w+)\.json\n)(?P<body>(?:#   .*\n)*)")
BLOCK = re.compile(r"(<!-- results:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- /results -->)", re.DOTALL)

Json = Mapping[str, Any]


def main() -> int:
    options = _options()
    pages, recipes = sorted((ROOT / "docs").rglob("*.md")), sorted((ROOT / "recipes").glob("[!_]*.yaml"))
    files = options.file or [ROOT / "README.md", *pages, *recipes]
    return max(fill(file, options.results, options.check) for file in files)


def fill(file: Path, results: Path, check: bool) -> int:
    """Fills one file, or says with exit code 1 that it is stale."""
    text = file.read_text(encoding="utf-8")
    is_recipe = file.suffix == ".yaml"
    up = "../" if file.resolve().parent == ROOT / "docs" else ""  # links on a page start from its folder
    rendered = render_recipe(text, results) if is_recipe else render(text, results, up)
    if rendered == text:
        found = list((HEADER if is_recipe else BLOCK).finditer(text))
        unmade = sum(not (results / f"{one['name']}.json").is_file() for one in found)
        print(f"{file.name}: {_told(len(found) - unmade, unmade)}")
        return 0
    if check:
        print(
            f"error: {file} is stale: a figure is not what benchmarks/results gives\n\n"
            "hint: python benchmarks/render.py",
            file=sys.stderr,
        )
        return 1
    file.write_text(rendered, encoding="utf-8")
    print(f"{file.name}: tables written")
    return 0


def _told(made: int, unmade: int) -> str:
    """What stands in a file; that figures are not made yet is no fault."""
    parts = [f"{made} table{'s' * (made != 1)}, up to date"] if made or not unmade else []
    return "; ".join([*parts, *([f"{unmade} without figures: no results file yet"] if unmade else [])])


def render(text: str, results: Path, up: str = "") -> str:
    """The text with every block filled from its results file, links to which start with `up`."""

    def fill(block: re.Match[str]) -> str:
        file = results / f"{block['name']}.json"
        if not file.is_file():
            return block[0]
        content = json.loads(file.read_text(encoding="utf-8"))
        table = _renderer(block["name"])(content["results"])
        return (
            f"{block[1]}\n{table}\n\n{_source(content['environment'], content['results'], file.name, up)}\n\n{block[4]}"
        )

    return BLOCK.sub(fill, text)


def render_recipe(text: str, results: Path) -> str:
    """A recipe with the figures in its header from the results file that it names."""

    def fill(header: re.Match[str]) -> str:
        file = results / f"{header['name']}.json"
        if not file.is_file():
            return header[1]
        content = json.loads(file.read_text(encoding="utf-8"))
        lines = recipe_header(content["results"], content["environment"])
        return header[1] + "".join(f"#   {line}\n" for line in lines)

    return HEADER.sub(fill, text)


def recipe_header(results: Json, environment: Json) -> list[str]:
    """Sampled accuracy of each model with its gain, over the seeds; what a seed took; on what; what was tuned on it."""
    seeds = list(results["seeds"].values())
    told = []
    for model in seeds[0].get("models", {}):
        sampled = [
            one.get("sampled") or one["measures"]["sampled"] for one in (seed["models"][model] for seed in seeds)
        ]
        gain = f" ({_gain_by_seed(found)})" if (found := _gain_of(results, model)) else ""
        told.append(f"{model} {_mean_of([one['mean'] for one in sampled]):.2f}{gain}")
    if any("over_greedy" in way for way in results.get("strategies", {}).values()):
        told = [f"{name} {results['strategies'][name]['mean']:.2f}" for name in ("sampled", "greedy")]
        told += _best_strategies(results["strategies"])
    minutes = _mean_of([sum(seed["seconds"].values()) / 60 for seed in seeds if "seconds" in seed] or [0.0])
    hardware = environment["hardware"]
    machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    took = f"{minutes:.0f} minutes a seed with base and SFT, " if minutes else ""
    measured = "Accuracy" if not seeds[0].get("models") else "Sampled accuracy"
    lines = textwrap.wrap(f"{measured}: {', '.join(told)}.", 112) if told else []
    of = _seeds(results["seeds"])
    doubted = doubts(environment, results, is_marked_up=False)
    lines += textwrap.wrap(f"{of[0].upper()}{of[1:]}; {took}on {machine}{doubted}.", 112)
    if tuned := _tuned(results.get("settings", {})):
        lines.append(f"Settings of {tuned}: {TUNED}.")
    return lines


def _best_strategies(strategies: Json, count: int = 3) -> list[str]:
    """The most accurate strategies that do not know the answer, each with its gain over greedy."""
    known = {name: way for name, way in strategies.items() if "over_greedy" in way and not name.endswith("(oracle)")}
    best = sorted(known, key=lambda name: -known[name]["mean"])[:count]
    return [
        f"{name.partition('(')[0]} {known[name]['mean']:.2f} ({_gain(known[name]['over_greedy'])})" for name in best
    ]


def _gain_of(results: Json, model: str) -> dict[str, Any] | None:
    """A model's gain: pooled over problems and seeds, else, of files without each problem's, the seeds' widest ends."""
    for gain in results.get("gains", ()):
        if gain["model"] == model:
            return {"is_pooled": True, **gain}
    found = {seed: one["models"][model] for seed, one in results["seeds"].items()}
    gains = {seed: one["gain"] for seed, one in found.items() if one["gain"]}
    if not gains:
        return None
    by_seed = {seed: gain["mean"] for seed, gain in gains.items()}
    mean, over = _mean_of(list(by_seed.values())), next(iter(found.values()))["parent"]
    low, high = min(gain["low"] for gain in gains.values()), max(gain["high"] for gain in gains.values())
    return {"is_pooled": False, "over": over, "mean": mean, "low": low, "high": high, "by_seed": by_seed}


def _gain_by_seed(gain: Json) -> str:
    """A gain in a header, with each seed's where there are several."""
    # of several seeds without each problem's figures only the widest ends are known, which is no interval
    is_interval = gain["is_pooled"] or len(gain["by_seed"]) == 1
    of_all = _gain(gain) if is_interval else f"{gain['mean']:+.2f}"
    by_seed = f"; by seed {_by_seed(gain)}" if len(gain["by_seed"]) > 1 else ""
    return f"{of_all} over {gain['over']}{by_seed}"


def _by_seed(gain: Json) -> str:
    return ", ".join(f"{value:+.2f}" for value in gain["by_seed"].values())


def _tuned(settings: Mapping[str, str]) -> str:
    """The models whose settings were chosen on what they report; empty where there are none."""
    return ", ".join("all models" if model == "all" else model for model, where in settings.items() if where == TUNED)


def _intervals(results: Json, models: Sequence[str]) -> str:
    """What the brackets of a table of models are."""
    gains = [gain for model in models if (gain := _gain_of(results, model))]
    ends = "in brackets the widest ends of their 95 % intervals"
    if gains and all(gain["is_pooled"] for gain in gains):
        ends += ", of gains the 95 % interval of a bootstrap over problems, the same for all seeds, and over seeds"
    tuned = _tuned(results.get("settings", {}))
    said = f" Settings of {tuned}: **{TUNED}**." if tuned else ""
    of = _seeds(results["seeds"])
    return f"{of[0].upper()}{of[1:]}: means, and {ends}.{said}"


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def quickstart_table(results: Json) -> str:
    """One row per model: means over seeds, with the widest ends of their 95 % intervals; then the reward model."""
    seeds = results["seeds"]
    models = next(iter(seeds.values()))["models"]
    told = {"best_of_n_rm": "reward model", "best_of_n_newer_rm": "reward model trained again"}
    scorers = {name: label for name, label in told.items() if name in next(iter(models.values()))}
    rows = []
    for model in models:
        found = [seed["models"][model] for seed in seeds.values()]
        gain = _gain_of(results, model)
        rows.append(
            [
                model,
                _over_seeds([one["sampled"] for one in found]),
                *([f"{_gain(gain)} over {gain['over']}", _by_seed(gain)] if gain else ["", ""]),
                *(_mean([one[name]["mean"] for one in found]) for name in ("greedy", "majority")),
                *(_mean([one[name]["mean"] for one in found]) + _followed_too_far(found, name) for name in scorers),
                _mean([one["best_of_n_oracle"]["mean"] for one in found]),
            ]
        )
    head = ["model", "sampled accuracy", "gain", "by seed", "greedy", "majority"]
    head += [f"best of n, {scorers[name]}" for name in scorers] + ["best of n, oracle"]
    pairs = ", ".join(f"{seed['rm_eval_accuracy']:.2f}" for seed in seeds.values())
    note = f"{_intervals(results, [row[0] for row in rows])} Reward model on held-out pairs: {pairs}."
    if any("over-optimised" in cell for row in rows for cell in row):
        note += " Over-optimised: best of k by it falls as k grows, by more than noise, on so many of the seeds."
    return f"{_table(head, rows)}\n\n{note}"


def _followed_too_far(found: Sequence[Json], name: str) -> str:
    """On how many seeds `evaluate` says of a model's best of n by a scorer that it is followed too far."""
    count = sum(name.removeprefix("best_of_n_") in one.get("over_optimised", {}) for one in found)
    return f" (over-optimised, {count} of {len(found)})" if count else ""


def overhead_table(results: Json) -> str:
    """One row per method: the ratio recipe / plain TRL."""
    rows = []
    for method, found in results["methods"].items():
        train, whole = found["ratio"]["train"], found["ratio"]["whole"]
        extra = found["extra_whole_s"]
        rows.append([method.upper(), _ratio(train), _ratio(whole), f"{extra['median']:.2f} s"])
    head = ["method", "training, recipe / plain TRL", "whole stage, recipe / plain TRL", "whole stage, added"]
    note = f"Medians of {results['pairs']} interleaved pairs of {results['steps']} steps with 95 % intervals."
    return f"{_table(head, rows)}\n\n{note}"


def memory_plan_table(results: Json) -> str:
    """One row per case: the parts, which are equal or not, and the peak, planned and measured."""
    rows = []
    for row in results["cases"]:
        planned, measured = row["planned"], row["measured"]
        parts = [f"{planned[name] / 1e6:.1f}" for name in ("parameters", "gradients", "optimizer")]
        exact = "equal" if row["is_exact"] else "NOT equal"
        off = f"{row['off']:+.1%}" + ("" if row["is_within"] else ", outside")
        peaks = [f"{one['peak'] / 1e6:.0f}" for one in (planned, measured)]
        rows.append([f"`{row['case']}`", *parts, exact, *peaks, off])
    head = ["case", "parameters", "gradients", "optimizer", "measured", "peak planned", "measured", "off"]
    note = (
        f"MB (10^6). {results['steps']} steps of {results['rows']} rows of {results['length']} tokens, pairs twice as "
        f"many; where one samples, {results['prompt']} of them are the prompt's. Bound: 10 %, with gradient "
        "checkpointing 15 %."
    )
    return f"{_table(head, rows)}\n\n{note}"


def ppo_memory_table(results: Json) -> str:
    """One row per set of roles: copies of the base in memory and on disk, and resident memory."""
    rows = []
    for row in results["rows"]:
        by = f"`{row['judges']}`" if row["roles"] in ("and reward model", "and PRM") else ""
        copies = [f"{row['bases_in_memory']:.2f}", f"{row['bases_on_disk']:.2f}"]
        rows.append([row["roles"], by, *copies, f"{row['peak_mib_over_policy']:+.0f} MiB"])
    head = ["roles", "judges lie on SFT by", "bases in memory", "bases on disk", "peak RSS over the policy's"]
    alone = results["rows"][0]
    note = (
        f"The base has {alone['base_mib']:.0f} MiB; the policy alone takes {alone['peak_mib']:.0f} MiB in training. "
        f"A step of four rows; medians over {results['runs']} run{'s' * (results['runs'] != 1)} of each."
    )
    return f"{_table(head, rows)}\n\n{note}"


def gradient_checkpointing_table(results: Json) -> str:
    """One row per model: what checkpointing costs in CPU time, and the memory that it saves."""
    rows = []
    for name, found in results["cases"].items():
        peak = found["peak_mib"]
        rows.append(
            [
                name,
                f"{found['rows']} x {found['tokens']}",
                _ratio(found["time_ratio"]),
                f"{found['saved_mib']['median']:.0f} MiB",
                f"{peak['without']['median']:.0f} -> {peak['with']['median']:.0f} MiB",
            ]
        )
    head = ["SFT", "rows x tokens", "CPU time, with / without", "memory saved", "peak, without -> with"]
    note = f"Medians of {results['pairs']} interleaved pairs of {results['steps']} steps with 95 % intervals."
    return f"{_table(head, rows)}\n\n{note}"


WAYS = {"plain": "as TRL does", "shared": "shared"}


def share_prompts_table(results: Json) -> str:
    """One row per case: how much faster a step is, what generation takes of it, and the way that the formula took."""
    rows = []
    for name, found in results["cases"].items():
        shares = [f"{found['shares'][side]['generation']:.0%}" for side in ("plain", "shared")]
        step = [f"{found['step_s'][side]:.1f} s" for side in ("plain", "shared")]
        ways = ", ".join(f"`{way}`" for way, count in found["way"]["passes"].items() if count)
        ratios = [_ratio(found["speedup"]), f"{found['goal']:.2f} ({found['accepted']:.2f})"]
        ratios.append(_ratio(found["passes_speedup"]))
        rows.append([name, str(len(found["pairs"])), *ratios, " -> ".join(shares), " -> ".join(step), ways])
    head = ["prompt, completion", "pairs", "step, times faster", "goal (accepted)", "its passes alone"]
    note = (
        f"Medians of interleaved pairs of steps with 95 % intervals, in CPU time; groups of {results['group']}, LoRA, "
        "`beta` above 0. The first ratio has `rollouts: engine` in it."
    )
    if curves := results.get("curves"):
        ends = {side: [_mean_of(one[side][-len(one[side]) // 5 :]) for one in curves.values()] for side in WAYS}
        told = "; ".join(
            f"{_mean(of)} ({', '.join(f'{value:.3f}' for value in of)}) {WAYS[side]}" for side, of in ends.items()
        )
        note += (
            f" What is learned, the quickstart's GRPO on {_seeds(curves)}: mean reward of the last fifth of the steps "
            f"{told}."
        )
    return f"{_table([*head, 'share of generation', 'CPU time of a step', 'way'], rows)}\n\n{note}"


def gpu_table(results: Json) -> str:
    """One row per method and side."""
    rows = []
    for method, sides in results["methods"].items():
        for side, found in sides.items():
            peak = "" if found["peak_gib"] is None else f"{found['peak_gib']:.2f}"
            rows.append([f"{method.upper()}, {side}", f"{found['tokens_per_s']:,.0f}", f"{found['step_s']:.3f}", peak])
    return _table(["Qwen3-0.6B shape, 4-bit + LoRA", "tokens/s", "median step, s", "peak GiB"], rows)


def test_time_table(results: Json) -> str:
    """One row per way of answering, the most accurate first."""
    rows = []
    ordered = sorted(results["strategies"].items(), key=lambda item: -item[1]["mean"])
    for name, found in ordered:
        is_oracle = name.endswith("(oracle)")
        rows.append(
            [
                f"`{name}`",
                f"{found['mean']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})",
                f"{found['tokens']:.0f}",
                "" if is_oracle else f"{found['best_of_n_at_its_tokens']:.2f}",
                "oracle" if is_oracle else f"{found['beats_best_of_n']} of {found['seeds']}",
                "yes" if found["pareto"] == found["seeds"] else "",
            ]
        )
    head = ["strategy", "accuracy", "tokens a problem", "best of n (PRM) at as many", "beats it on seeds", "Pareto"]
    problems = next(iter(results["seeds"].values()))["problems"]
    wide = max(found["high"] - found["low"] for found in results["strategies"].values())
    note = (
        f"{problems} held-out problems; means over {_seeds(results['seeds'])}, in brackets the lowest and "
        f"highest seed. 95 % intervals over problems are at most {wide:.2f} wide. Tokens: read and written, by reward "
        "models too."
    )
    return f"{_table(head, rows)}\n\n{note}"


def recipe_table(results: Json) -> str:
    """One row per model of a recipe: sampled accuracy, its gain, greedy; then ways to answer, if they are claimed."""
    seeds = list(results["seeds"].values())
    rows = []
    for model in seeds[0]["models"]:
        found = [seed["models"][model] for seed in seeds]
        gain = _gain_of(results, model)
        greedy = [one["measures"]["greedy"]["mean"] for one in found if "greedy" in one["measures"]]
        rows.append(
            [
                model,
                _over_seeds([one["measures"]["sampled"] for one in found]),
                *([f"{_gain(gain)} over {gain['over']}", _by_seed(gain)] if gain else ["", ""]),
                _mean(greedy) if greedy else "",
            ]
        )
    head = ["model", "sampled accuracy", "gain", "by seed", "greedy"]
    told = f"{_table(head, rows)}\n\n{_intervals(results, [row[0] for row in rows])}"
    if over := results.get("over_sampled"):
        head = ["model", "answered by", "accuracy", "over one sample", "by seed"]
        ways = [
            [model, f"`{way}`", _mean([gain["mean_of_model"]]), _gain(gain), _by_seed(gain)]
            for model, found in over.items()
            for way, gain in found.items()
        ]
        told += f"\n\n{_table(head, ways)}"
    return told


def adapters_table(results: Json) -> str:
    """One row per adapter, one column per stage; what is refused has a number, and its reason below."""
    cells = results["cells"]
    adapters = list(dict.fromkeys(name.split()[0] for name in cells))
    stages = list(dict.fromkeys(name.split()[1] for name in cells))
    notes: dict[str, int] = {}
    rows = []
    for adapter in adapters:
        found = [cells[f"{adapter} {stage}"] for stage in stages if f"{adapter} {stage}" in cells]
        merged = [cell["merged"] for cell in found if cell.get("merged") is not None]
        reload = [cell["reload"] for cell in found if "reload" in cell]
        marks = [_mark(cells.get(f"{adapter} {stage}"), notes) for stage in stages]
        largest = f"{max(merged):.0e}" if merged else "cannot be"
        rows.append([f"`{adapter}`", *marks, f"{max(reload):g}" if reload else "", largest])
    head = ["adapter", *(f"`{stage}`" for stage in stages), "loaded again", "merged"]
    reasons = "\n".join(f"{number}. {reason}" for reason, number in notes.items())
    key = (
        "**4**: its weights train and no others move, on a base in 4 bits too; **yes**: the same, but refused in 4 "
        "bits, whose packed weights it reads or trains; a number alone: refused before anything is loaded. "
        "*Loaded again*: largest difference of logits after saving and loading; *merged*: largest relative difference "
        f"after merging, in float32. {results['steps']} steps on {results['rows']} rows."
    )
    return f"{_table(head, rows)}\n\n{key}\n\n{reasons}"


def _mark(cell: Json | None, notes: dict[str, int]) -> str:
    if cell is None:
        return ""
    if cell["wrong"]:
        return "FAILS"
    if cell["refused"]:
        return f"({_noted(cell['refused'], notes)})"
    in_4bit = cell["4bit"]
    mark = "4" if in_4bit is not None and "refused" not in in_4bit else "yes"
    options = ", ".join(f"{name}: {str(value).lower()}" for name, value in cell["options"].items())
    return f"{mark} ({_noted(f'with `args: {{{options}}}`', notes)})" if options else mark


def _noted(reason: str, notes: dict[str, int]) -> int:
    told = re.sub(r"adapter 'it' in stage 'cell': ", "", reason)
    return notes.setdefault(told, len(notes) + 1)


def methods_table(results: Json) -> str:
    """One row per method: its gain over SFT, pooled and on each seed, and what training took; then process rewards."""
    seeds = list(dict.fromkeys(seed for found in results["methods"].values() for seed in found))
    pooled, settings = results.get("gains", {}), results.get("settings", {})
    rows = []
    for method, found in results["methods"].items():
        gain = pooled.get(method) or {"mean": _mean_of([one["gain"]["mean"] for one in found.values()])}
        by_seed = [_gain(found[seed]["gain"]) if seed in found else "" for seed in seeds]
        marks = [few] if (few := _few(found)) else []
        marks += [f"**{TUNED}**"] if settings.get(method) == TUNED else []
        name = f"{method} ({', '.join(marks)})" if marks else method
        rows.append([name, _gain(gain), *by_seed, _mean([one["train_s"] for one in found.values()], 0)])
    head = ["method", "gain", *(f"seed {seed}" for seed in seeds), "train s"]
    of_all = " over all seeds of a bootstrap over problems, the same for all, and over seeds;" if pooled else ""
    note = (
        f"Gain in sampled accuracy over the SFT model, in brackets its 95 % interval,{of_all} of a seed over its held-"
        "out problems; loops have none on a seed, since they are measured over their last turn. `train s`: seconds of "
        "training, of ReST those of its last stages."
    )
    return f"{_table(head, rows)}\n\n{note}{_process_rewards(results['process_rewards'])}"


def real_table(results: Json) -> str:
    """One row per gain on a real chat model: both accuracies, the pooled gain, and each seed's."""
    rows = []
    for recipe, found in results["recipes"].items():
        for gain in found["gains"]:
            rows.append(
                [
                    f"`real/{recipe}`",
                    f"{_way(gain['model'], gain['measure'])} {gain['mean_of_model']:.2f}",
                    f"{_way(gain['over'], gain['over_measure'])} {gain['mean_of_other']:.2f}",
                    _gain(gain),
                    f"{_by_seed(gain)} ({_seeds(gain['by_seed'])})",
                ]
            )
    head = ["recipe", "model, accuracy", "over", "gain [95 %]", "by seed"]
    note = (
        f"{_problems(results)} of an exam that was opened when all settings stood. The interval is of a bootstrap over "
        f"problems, which are the same for all seeds, and over seeds.{_minutes(results)}"
    )
    return f"{_table(head, rows)}\n\n{note}{_ways_table(results)}"


def _problems(results: Json) -> str:
    """How many problems the exams have: the first recipe's, and in brackets those that have another number."""
    sizes = {}
    for recipe, found in results["recipes"].items():
        of_a_model = next(iter(next(iter(found["seeds"].values()))["values"].values()))
        sizes[recipe] = len(next(iter(of_a_model.values())))
    usual = next(iter(sizes.values()))
    others = ", ".join(f"{size} of `real/{recipe}`" for recipe, size in sizes.items() if size != usual)
    return f"{usual} problems{f' ({others})' if others else ''}"


def _ways_table(results: Json) -> str:
    """Accuracy against tokens of each way of asking; nothing where the recipes measure models and not ways."""
    rows = []
    for recipe, found in results["recipes"].items():
        told = [way for way in found.get("ways", ()) if recipe.partition(",")[0] in WAYS_OF]
        for way in sorted(told, key=lambda one: (one["model"], one["tokens"])):
            mean, low, high = (f"{way[name]:.2f}" for name in ("mean", "low", "high"))
            name = _short(way["measure"])
            few = f" ({_few(range(way['seeds']))})" if way["seeds"] < SEEDS else ""
            rows.append(
                [f"`real/{recipe}`{few}", way["model"], name, f"{mean} [{low}, {high}]", f"{way['tokens']:.0f}"]
            )
    if not rows:
        return ""
    note = "Tokens: read and written. *checker*: told by the exam's own checker what is wrong, or picked by it."
    return f"\n\n{_table(['recipe', 'model', 'way of asking', 'accuracy [95 %]', 'tokens a problem'], rows)}\n\n{note}"


WAYS_OF = ("chain_of_thought", "react", "reflection", "strategies")
COUNTS = re.compile(r"\b((?:n|rounds|trials|waits|layers|branches|max_steps)=\d+)")


def _short(measure: str) -> str:
    """A strategy's name with its counts, without prompts.

    Example:
        >>> _short("best_of_n(n=8, scorer=right) (oracle)")
        '`best_of_n(n=8)`, *checker*'
    """
    name, counts = measure.partition("(")[0], COUNTS.findall(measure)
    told = f"`{name.strip()}({', '.join(counts)})`" if counts else f"`{name.strip()}`"
    return told + ", *checker*" * ("scorer=right" in measure)


def _minutes(results: Json) -> str:
    took = {
        recipe: _mean_of([sum(seed["seconds"].values()) / 60 for seed in found["seeds"].values()])
        for recipe, found in results["recipes"].items()
    }
    told = ", ".join(f"`real/{recipe}` {minutes:.0f}" for recipe, minutes in took.items())
    threads = results["threads"]
    return f" Minutes a seed on {threads} thread{'s' * (threads > 1)}: {told}."


def forgetting_table(results: Json) -> str:
    """One row per model: accuracy on the task and perplexity of what else it read; what of gain and loss is left."""
    (found,) = results["recipes"].values()
    seeds = found["seeds"]
    gains = {gain["model"]: gain for gain in found["gains"]}
    (texts,) = {name for seed in seeds.values() for name in seed["retain"]}
    kept = [seed["retain"][texts] for seed in seeds.values()]
    models = list(kept[0]["models"])
    gain_of = {name: gains[name]["mean"] if name in gains else 0.0 for name in models}
    nats = {name: _mean_of([math.log(one["models"][name]["mean"]) for one in kept]) for name in models}
    first, trained = models[:2]
    rows = []
    for name in models:
        perplexity = [one["models"][name] for one in kept]
        accuracy = gains[name]["mean_of_model"] if name in gains else gains[trained]["mean_of_other"]
        changes = [one["over"][first] for one in perplexity if first in one.get("over", {})]
        cells = [
            f"`{name}`",
            f"{accuracy:.2f}",
            _over_seeds(perplexity),
            f"x {_over_seeds(changes)}" if changes else "",
        ]
        is_remedy = name not in (first, trained)
        lost = (nats[trained] - nats[name]) / (nats[trained] - nats[first])
        rows.append([*cells, *([f"{gain_of[name] / gain_of[trained]:.0%}", f"{lost:.0%}"] if is_remedy else ["", ""])])
    head = ["model", "accuracy, greedy", "perplexity of English [95 %]", f"paired, over `{first}`"]
    head += ["of the gain", "of the loss given back"]
    problems = len(next(iter(next(iter(next(iter(seeds.values()))["values"].values())).values())))
    note = (
        f"{problems} problems and {kept[0]['rows']} paragraphs of an exam that was opened when all settings stood; "
        f"{_seeds(seeds)}. The loss is counted in nats per token, the change paired by paragraph.{_minutes(results)}"
    )
    return f"{_table(head, rows)}\n\n{note}"


def grpo_real_table(results: Json) -> str:
    """One row per figure: both sides' medians, and the ratio recipe / plain TRL."""
    names = {
        "train_s": ("training, s", 1),
        "train_cpu_s": ("training, CPU s", 1),
        "whole_s": ("whole process, s", 1),
        "peak_gib": ("peak memory in training, GiB", 2),
    }
    rows = []
    for what, (name, digits) in names.items():
        sides = [f"{results['sides'][side][what]['median']:.{digits}f}" for side in ("recipe", "plain")]
        rows.append([name, *sides, _ratio(results["ratio"][what])])
    pairs, steps = results["pairs"], results["steps"]
    first = pairs[0]["plain"]["log"]
    same = "equal to the last bit" if results["is_equal"] else "NOT EQUAL"
    note = (
        f"Losses, norms of the gradients, rewards and the trained weights of all {2 * len(pairs)} runs: {same} "
        f"(losses {', '.join(format(row['loss'], '.4f') for row in first)}). Medians of {len(pairs)} interleaved pairs "
        f"with 95 % intervals, {steps} steps after one to warm up, {results['args']['per_device_train_batch_size']} "
        "completions a step; the whole process imports, loads, trains and saves."
    )
    return f"{_table(['GRPO of SmolLM2-135M, LoRA', 'recipe', 'plain TRL', 'recipe / plain'], rows)}\n\n{note}"


def real_kills_table(results: Json) -> str:
    """One row per stage of the real chain: when it was killed, where it went on, what is equal at the end."""
    rows = []
    for stage in dict.fromkeys(kill["stage"] for kill in results["kills"]):
        kills = [kill for kill in results["kills"] if kill["stage"] == stage]
        moments = "; ".join(f"step {one['after_step']}, {one['after_s']:.0f} of {one['of_s']:.0f} s" for one in kills)
        begun = "; ".join(one["from"] for one in kills)
        equal = [f"{sum(bool(one[what]) for one in kills)} of {len(kills)}" for what in ("weights", "data", "figures")]
        rows.append([f"`{stage}`", moments, begun, *equal])
    head = ["stage", "killed after", "went on from", "equal weights", "equal data", "equal figures"]
    note = (
        f"{len(results['kills'])} kills of a chain of {results['steps']} steps a stage on SmolLM2-135M. Equal: to the "
        "last bit of what an undisturbed run gives. `base` is the reading of the GGUF file."
    )
    return f"{_table(head, rows)}\n\n{note}"


MEASURES = {"chain_of_thought": "with worked examples", "sampled": "sampled", "greedy": "greedy"}


def _way(model: str, measure: str) -> str:
    return f"{model}, {MEASURES.get(measure, measure.replace('_', ' '))}"


def _seeds(seeds: Collection[str]) -> str:
    """Name the seeds, and count them where they are fewer than three.

    Example:
        >>> _seeds(["0", "1", "2"]), _seeds(["0"])
        ('seeds 0, 1, 2', '1 seed: 0')
    """
    names = ", ".join(seeds)
    return f"{few}: {names}" if (few := _few(seeds)) else f"seeds {names}"


def _few(seeds: Collection[object]) -> str:
    """Count the seeds where they are fewer than three."""
    return f"{len(seeds)} seed{'s' * (len(seeds) != 1)}" if len(seeds) < SEEDS else ""


def kills_table(results: Json) -> str:
    """One row per stage: its kills, what was damaged, and whether each run came to the same end."""
    of_stage: dict[str, list[Json]] = {}
    for row in results["kills"]:
        of_stage.setdefault(row["stage"], []).append(row)
    rows = []
    for stage, kills in of_stage.items():
        name, _, variant = stage.partition(", ")
        equal = [sum(bool(kill[what]) for kill in kills) for what in ("weights", "log", "figures")]
        steps = ", ".join(str(kill["after_step"]) for kill in kills)
        harms = "; ".join(kill["harm"] for kill in kills)
        counts = [f"{count} of {len(kills)}" for count in equal]
        rows.append([f"`{name}`{', ' * bool(variant)}{variant}", steps, harms, *counts])
    count = len(results["kills"])
    begun = sum(kill["from"] == "the start" for kill in results["kills"])
    head = [
        "stage",
        "killed at or after step",
        "then, in its newest checkpoint",
        "equal weights",
        "equal log",
        "equal figures",
    ]
    note = (
        f"{count} kills of runs of {results['steps']} steps; {count - begun} went on from the checkpoint before the "
        f"damaged one, {begun} had none and began anew. Equal: to the last bit of what an undisturbed run gives."
    )
    return f"{_table(head, rows)}\n\n{note}"


def _gain(gain: Json) -> str:
    return f"{gain['mean']:+.2f}" + (f" [{gain['low']:+.2f}, {gain['high']:+.2f}]" if "low" in gain else "")


def _process_rewards(seeds: Json) -> str:
    """The answer to: fewer steps with process rewards?"""
    if not seeds:
        return ""
    told = [f"{one['steps']['process'] or 'never'} against {one['steps']['outcome']}" for one in seeds.values()]
    fewer = sum((one["steps"]["process"] or math.inf) < one["steps"]["outcome"] for one in seeds.values())
    return (
        f"\n\nSteps to the level at which PPO on the outcome alone ends, with process rewards against without: "
        f"{', '.join(told)}; fewer on {fewer} of {len(seeds)} seeds."
    )


def faults_table(results: Json) -> str:
    """One row per stage kind, one column per phase: kills that cost nothing but time, of all in that phase."""
    phases = ("loading", "training", "saving", "publishing")
    of_kind: dict[str, dict[str, list[Json]]] = {}
    for row in results["kills"]:
        name = row["kind"] + (f", {row['processes']} processes" if row["processes"] > 1 else "")
        of_kind.setdefault(name, {}).setdefault(row["phase"], []).append(row)
    rows = []
    for kind, found in of_kind.items():
        name, _, variant = kind.partition(", ")
        cells = [f"{sum(map(_is_whole, of))} of {len(of)}" if (of := found.get(phase)) else "" for phase in phases]
        rows.append([f"`{name}`{', ' * bool(variant)}{variant}", *cells])
    kills = results["kills"]
    whole = sum(map(_is_whole, kills))
    went_on = sum(str(row["from"]).startswith("checkpoint") for row in kills)
    note = (
        f"{len(kills)} kills at random moments: after {whole} of them every result that stood was as it "
        f"was made, and the run ended with the same weights, data and figures, bit for bit. {went_on} went on from a "
        "checkpoint, the others began the stage anew or found it done. An empty cell: no kill fell into it; stages "
        "that train nothing write what they make as they make it."
    )
    return f"{_table(['stage', *phases], rows)}\n\n{note}"


def _is_whole(row: Json) -> bool:
    return row["equal"] and not row["corrupt"] and "error" not in row


ALONE = "one process"


def launch_table(results: Json) -> str:
    """One row per kind of training: the last step's loss under each engine, and how far weights are from DDP's."""
    cells = results["cells"]
    engines = list(dict.fromkeys(engine for made in cells.values() for engine in made))
    rows = []
    for kind, made in cells.items():
        last = [_last_loss(made.get(engine)) for engine in engines]
        far = [one["from_ddp"] for name, one in made.items() if name != ALONE and one.get("from_ddp") is not None]
        rows.append([f"`{kind}`", *last, f"{max(far):.0e}" if far and max(far) else "0"])
    count = sum(len(made) for made in cells.values())
    wrong = sum(bool(one.get("error") or one["unexpected"]) for made in cells.values() for one in made.values())
    head = [
        "kind",
        *(engine if engine == ALONE else f"`{engine}`" for engine in engines),
        "weights, furthest from DDP's",
    ]
    note = (
        f"Loss of the last of {results['steps']} steps, the same rows in each; two processes but for the first column. "
        f"{count - wrong} of {count} artifacts load in one process with no weight missing or left over. GRPO and PPO "
        "draw other samples in one process. FSDP2 by a shim: accelerate has it on GPUs alone."
    )
    return f"{_table(head, rows)}\n\n{note}"


def _last_loss(made: Json | None) -> str:
    if made is None:
        return ""
    return "failed" if made.get("error") else f"{made['losses'][-1]:.4f}"


def store_kills_table(results: Json) -> str:
    """One line: kills, phases, what was lost."""
    phases = ", ".join(f"{count} while {name}" for name, count in results["phases"].items() if count)
    return (
        f"{results['kills']} kills of runs that compute nothing, at random moments ({phases}); {results['went_on']} "
        f"went on from a checkpoint; {len(results['wrong'])} lost or changed anything."
    )


def critic_table(results: Json) -> str:
    """One row for each setting of PPO's critic: what it explains of held-out completions, and the policy's level."""
    last = max(1, results["rollouts"] // 5)
    rows = []
    for name, seeds in results["rows"].items():
        held_out = [one["held_out"] for one in seeds.values() if one["held_out"] is not None]
        cells = [f"{_mean(held_out)} ({', '.join(f'{value:.2f}' for value in held_out)})" if held_out else ""]
        for key, part in (
            ("explained", slice(0, last)),
            ("explained", slice(-last, None)),
            ("reward", slice(-last, None)),
        ):
            # returns that are all equal explain nothing, and have no line
            ends = [_mean_of(one["curves"][key][part]) for one in seeds.values() if one["curves"][key]]
            cells.append(_mean(ends) if ends else "")
        reached = [levels.reached(one["curves"]["reward"], LEVEL, 3) for one in seeds.values()]
        cells.append(", ".join("never" if count is None else str(count) for count in reached))
        rows.append([name, *cells])
    explained = ["held-out explained variance (by seed)", f"in the first {last} rollouts", f"in the last {last}"]
    head = ["critic", *explained, "reward", f"rollouts to {LEVEL:.2f}"]
    note = (
        "Each row keeps what the rows above it changed. Held out: completions of the trained policy on other problems, "
        "their reward the return of each state. In rollouts: before the critic has learned from them; reward: of the "
        f"last {last}. Rollouts, of 128 completions each, until the mean reward of three in a row is {LEVEL:.2f}, by "
        "seed."
    )
    return f"{_table(head, rows)}\n\n{note}"


def search_table(results: Json) -> str:
    """One row per way of answering, the most accurate first: tokens, gain over greedy, best of n at as many tokens."""
    names = list(next(iter(results["strategies"].values()))["best_at_its_tokens"])
    rows = []
    for name, way in sorted(results["strategies"].items(), key=lambda item: -item[1]["mean"]):
        is_oracle = name.endswith("(oracle)")
        gain = way.get("over_greedy")
        told = f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]" if gain else ""
        by_seed = ", ".join(f"{value:+.2f}" for value in gain["by_seed"].values()) if gain else ""
        best = ["" if is_oracle else f"{way['best_at_its_tokens'][by]:.2f}" for by in names]
        rows.append([f"`{name}`", f"{way['mean']:.2f}", f"{way['tokens']:.0f}", told, by_seed, *best])
    best_of = [f"best of n (`{by}`) at as many" for by in names]
    head = ["strategy", "accuracy", "tokens a problem", "over greedy [95 %]", "by seed", *best_of]
    problems = next(iter(results["seeds"].values()))["problems"]
    note = (
        f"{problems} held-out problems, {_seeds(results['seeds'])}; the interval is of a bootstrap over problems and "
        "seeds. Tokens: read and written, by reward models too. Best of n: the best for at most as many tokens, up to "
        "the samples that there are."
    )
    return f"{_table(head, rows)}\n\n{note}"


def value_table(results: Json) -> str:
    """One row for each value function and policy: explained variance, what can be explained, and the share."""
    rows = []
    for name, seeds in results["rows"].items():
        found = list(seeds.values())
        shares = ", ".join(f"{one['share']:.2f} [{one['share_low']:.2f}, {one['share_high']:.2f}]" for one in found)
        cells = [_mean([one[key] for one in found]) for key in ("explained", "bound")]
        share = _mean([one["share"] for one in found], 3)  # .80 is asked for, and two digits may hide a miss
        rows.append([name, *cells, share, shares, _mean([one["states"] for one in found], 0)])
    head = ["value function, of", "explained variance", "bound", "share of the bound", "by seed [95 %]", "states"]
    note = (
        f"Of held-out problems; from each state {results['rollouts']} completions, whose rewards are what is to be "
        "explained. The bound is what the best function of the state could explain; intervals over problems."
    )
    return f"{_table(head, rows)}\n\n{note}"


def process_rewards_table(results: Json) -> str:
    """One row for each method and process reward: when gold has each level, and whether it fell as the proxy rose."""
    told_levels = [f"{level:.2f}" for level in results["levels"]]
    rows = []
    for name, seeds in results["rows"].items():
        method, source, *alone = name.split("_")
        found = list(seeds.values())
        gold = [one["gold"] for one in found]
        cells = [f"{_mean(gold)} ({', '.join(f'{value:.2f}' for value in gold)})"]
        for level in told_levels:
            cells.append(_when([one["steps_to"][level] for one in found]))
            reached = [one["completions_to"][level] for one in found]
            cells.append("" if None in reached else f"{_mean_of(reached):,.0f}")
        cells.append(f"{_mean_of([one['judge_completions'] for one in found]):,.0f}")
        judged = [one["hacked"] for one in found if one["hacked"]]
        for curve in ("gold", "proxy"):
            changes = [one[curve]["mean"] for one in judged]
            told = ", ".join(f"{change:+.2f}" for change in changes)
            cells.append(f"{_mean_of(changes):+.2f} ({told})" if changes else "")
        count = sum(one["is_hacked"] for one in judged)
        cells.append(f"{'**' * (count > 0)}{count} of {len(judged)}{'**' * (count > 0)}" if judged else "")
        paid = "no" if alone else "yes"
        rows.append([method.upper(), source, paid, *cells, _mean([one["train_s"] for one in found], 0)])
    head = ["method", "process reward", "outcome paid", "gold at the end (by seed)"]
    for level in told_levels:
        head += [f"steps to {level} (by seed)", f"completions to {level}"]
    head += ["completions for the judge", "gold since its best", "proxy since then", "hacked", "train s"]
    note = (
        f"Gold: strict accuracy of the completions of a step, of which there are {results['steps']} with "
        f"{results['completions_a_step']} completions each; at the end and to a level as the mean of 5 steps. Proxy: "
        "the sum of the step scores that are paid, in units of its source. Hacked: from the 10 steps in which gold's "
        "mean is highest to the last 10, gold is lower and the proxy higher, each by more than 3 standard errors. "
        "The outcome's row has no judge and no proxy; nothing was tuned for a row."
    )
    return f"{_table(head, rows)}\n\n{note}"


def _when(steps: Sequence[int | None]) -> str:
    """Steps to a level by seed, with their mean where every seed has it."""
    told = ", ".join("never" if step is None else str(step) for step in steps)
    known = [step for step in steps if step is not None]
    return f"{_mean(known, 0)} ({told})" if len(known) == len(steps) else told if known else "never"


TABLES: dict[str, Callable[[Json], str]] = {
    "critic": critic_table,
    "value": value_table,
    "search": search_table,
    "tree": search_table,
    "graph": search_table,
    "process_rewards": process_rewards_table,
    "faults": faults_table,
    "launch": launch_table,
    "store_kills": store_kills_table,
    "adapters": adapters_table,
    "kills": kills_table,
    "quickstart_seeds": quickstart_table,
    "gradient_checkpointing": gradient_checkpointing_table,
    "grpo_real": grpo_real_table,
    "overhead": overhead_table,
    "memory_plan": memory_plan_table,
    "ppo_memory": ppo_memory_table,
    "share_prompts": share_prompts_table,
    "gpu_qwen3_0.6b": gpu_table,
    "methods": methods_table,
    "real": real_table,
    "real_forgetting": forgetting_table,
    "real_kills": real_kills_table,
    "real_strategies": real_table,
    "test_time": test_time_table,
}


def _renderer(name: str) -> Callable[[Json], str]:
    return recipe_table if name.startswith("recipe_") else TABLES[name]


def _source(environment: Json, results: Json, file: str, up: str) -> str:
    hardware = environment["hardware"]
    machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    versions = environment["versions"]
    made = dict.fromkeys(str(one["commit"]) for one in _measured(environment, results))
    commits = ", ".join(f"{sha[:12]}{dash}{dirty}" for sha, dash, dirty in (commit.partition("-") for commit in made))
    return (
        f"<sub>{machine}; torch {versions['torch']}, TRL {versions['trl']}; commit{'s' * (len(made) > 1)} {commits}, "
        f"{environment['date'][:10]}; [benchmarks/results/{file}]({up}benchmarks/results/{file})"
        f"{doubts(environment, results)}</sub>"
    )


def _measured(environment: Json, results: Json) -> list[Json]:
    """What was measured by itself, each with its commit and load: seeds, and where none tell, the file as a whole."""

    def told(part: Any) -> Iterator[Json]:
        if isinstance(part, Mapping):
            if "commit" in part:
                yield {**environment, **part}
            else:
                for one in part.values():
                    yield from told(one)

    return list(told(results)) or [environment]


def doubts(environment: Json, results: Json = MappingProxyType({}), is_marked_up: bool = True) -> str:
    """Return what makes figures worth less: changes that no commit holds, or other work on the machine."""
    measured = _measured(environment, results)
    cores = int(environment["hardware"]["cores"] or 1)
    load = max(_load(one.get("load_average")) for one in measured)
    is_dirty = any(one["commit"].endswith("-dirty") for one in measured)
    dirty = ["changes that are in no commit"] if is_dirty else []
    busy = [f"a busy machine, load {load:.1f} on {cores} cores"] if load > BUSY * cores else []
    found = " and ".join(dirty + busy)
    if not found:
        return ""
    return f". **Measured with {found}.**" if is_marked_up else f", with {found}"


def _load(told: float | Sequence[float] | None) -> float:
    """The higher of the loads before and after, where both stand."""
    return max(told) if isinstance(told, Sequence) else float(told or 0.0)


def _over_seeds(intervals: Sequence[Json], sign: str = "") -> str:
    mean = sum(one["mean"] for one in intervals) / len(intervals)
    low, high = min(one["low"] for one in intervals), max(one["high"] for one in intervals)
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def _ratio(interval: Json) -> str:
    return f"{interval['median']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _mean(values: Sequence[float], digits: int = 2) -> str:
    return f"{_mean_of(values):.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the file is stale")
    parser.add_argument("--file", type=Path, nargs="+", help="files with markers (README.md, docs/*.md, recipes)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of results")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
