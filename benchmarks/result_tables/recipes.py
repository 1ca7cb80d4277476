"""Tables of recipes and methods: what a model gains over the one that it was made from; the header of a recipe."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

from result_tables import text
from result_tables.text import Json

__all__ = ["adapters_table", "methods_table", "quickstart_table", "recipe_header", "recipe_table"]


def recipe_header(results: Json, environment: Json) -> list[str]:
    """Sampled accuracy of each model with its gain, over the seeds; what a seed took; on what; what was tuned on it."""
    seeds = list(results["seeds"].values())
    told = []
    for model in seeds[0].get("models", {}):
        sampled = [
            one.get("sampled") or one["measures"]["sampled"] for one in (seed["models"][model] for seed in seeds)
        ]
        gain = f" ({_gain_by_seed(found)})" if (found := text.gain_of(results, model)) else ""
        told.append(f"{model} {text.mean_of([one['mean'] for one in sampled]):.2f}{gain}")
    if strategies := results.get("strategies"):
        told = [f"{name} {strategies[name]['mean']:.2f}" for name in ("sampled", "greedy") if name in strategies]
        told += _best_strategies(strategies)
    minutes = text.mean_of([sum(seed["seconds"].values()) / 60 for seed in seeds if "seconds" in seed] or [0.0])
    hardware = environment["hardware"]
    machine = hardware["gpu"] or f"{text.processors(environment, results)}, {hardware['cores']} cores"
    took = f"{minutes:.0f} minutes a seed with base and SFT, " if minutes else ""
    measured = "Accuracy" if strategies or not seeds[0].get("models") else "Sampled accuracy"
    lines = textwrap.wrap(f"{measured}: {', '.join(told)}.", 112) if told else []
    of = text.which_seeds(results["seeds"])
    doubted = text.doubts(environment, results, is_marked_up=False)
    lines += textwrap.wrap(f"{of[0].upper()}{of[1:]}; {took}on {machine}{doubted}.", 112)
    if needed := seeds[0].get("needed"):
        lines += textwrap.wrap(f"Measured with {', '.join(needed)}.", 112)
    if tuned := text.tuned_models(results.get("settings", {})):
        lines.append(f"Settings of {tuned}: {text.TUNED}.")
    return lines


def _best_strategies(strategies: Json, count: int = 3) -> list[str]:
    """The most accurate strategies that do not know the answer, each with its gain over greedy where that is known."""
    plain = ("sampled", "greedy", "majority")
    known = {name: way for name, way in strategies.items() if name not in plain and not name.endswith("(oracle)")}
    told = []
    for name in sorted(known, key=lambda name: -known[name]["mean"])[:count]:
        gain = known[name].get("over_greedy")
        told.append(f"{_short(name)} {known[name]['mean']:.2f}" + (f" ({text.signed(gain)})" if gain else ""))
    return told


def _short(strategy: str) -> str:
    """A strategy's name, and what tells one draw-and-pick from another: how many, by whom, by weighted votes.

    Example:
        >>> _short("best_of_n(n=8, scorer=prm, weighted=True)"), _short("dvts(scorer=prm, n=8, separator=;)")
        ('best_of_n(n=8, scorer=prm, weighted=True)', 'dvts')
    """
    return strategy if strategy.startswith("best_of_n(") else strategy.partition("(")[0]


def _gain_by_seed(gain: Json) -> str:
    """A gain in a header, with each seed's where there are several."""
    # of several seeds without each problem's figures only the widest ends are known, which is no interval
    is_interval = gain["is_pooled"] or len(gain["by_seed"]) == 1
    of_all = text.signed(gain) if is_interval else f"{gain['mean']:+.2f}"
    by_seed = f"; by seed {text.each_seed(gain)}" if len(gain["by_seed"]) > 1 else ""
    return f"{of_all} over {gain['over']}{by_seed}"


def quickstart_table(results: Json) -> str:
    """One row per model: means over seeds, with the widest ends of their 95 % intervals; then the reward model."""
    seeds = results["seeds"]
    models = next(iter(seeds.values()))["models"]
    told = {"best_of_n_rm": "reward model", "best_of_n_newer_rm": "reward model trained again"}
    scorers = {name: label for name, label in told.items() if name in next(iter(models.values()))}
    rows = []
    for model in models:
        found = [seed["models"][model] for seed in seeds.values()]
        gain = text.gain_of(results, model)
        rows.append(
            [
                model,
                text.over_seeds([one["sampled"] for one in found]),
                *([f"{text.signed(gain)} over {gain['over']}", text.each_seed(gain)] if gain else ["", ""]),
                *(text.average([one[name]["mean"] for one in found]) for name in ("greedy", "majority")),
                *(
                    text.average([one[name]["mean"] for one in found]) + _followed_too_far(found, name)
                    for name in scorers
                ),
                text.average([one["best_of_n_oracle"]["mean"] for one in found]),
            ]
        )
    head = ["model", "sampled accuracy", "gain", "by seed", "greedy", "majority"]
    head += [f"best of n, {scorers[name]}" for name in scorers] + ["best of n, oracle"]
    pairs = ", ".join(f"{seed['rm_eval_accuracy']:.2f}" for seed in seeds.values())
    note = f"{text.about_intervals(results, [row[0] for row in rows])} Reward model on held-out pairs: {pairs}."
    if any("over-optimised" in cell for row in rows for cell in row):
        note += " Over-optimised: best of k by it falls as k grows, by more than noise, on so many of the seeds."
    return f"{text.table(head, rows)}\n\n{note}"


def _followed_too_far(found: Sequence[Json], name: str) -> str:
    """On how many seeds `evaluate` says of a model's best of n by a scorer that it is followed too far."""
    count = sum(name.removeprefix("best_of_n_") in one.get("over_optimised", {}) for one in found)
    return f" (over-optimised, {count} of {len(found)})" if count else ""


def recipe_table(results: Json) -> str:
    """One row per model of a recipe: sampled accuracy, its gain, greedy; then ways to answer, if they are claimed."""
    seeds = list(results["seeds"].values())
    rows = []
    for model in seeds[0]["models"]:
        found = [seed["models"][model] for seed in seeds]
        gain = text.gain_of(results, model)
        greedy = [one["measures"]["greedy"]["mean"] for one in found if "greedy" in one["measures"]]
        rows.append(
            [
                model,
                text.over_seeds([one["measures"]["sampled"] for one in found]),
                *([f"{text.signed(gain)} over {gain['over']}", text.each_seed(gain)] if gain else ["", ""]),
                text.average(greedy) if greedy else "",
            ]
        )
    head = ["model", "sampled accuracy", "gain", "by seed", "greedy"]
    told = f"{text.table(head, rows)}\n\n{text.about_intervals(results, [row[0] for row in rows])}"
    if over := results.get("over_sampled"):
        head = ["model", "answered by", "accuracy", "over one sample", "by seed"]
        ways = [
            [model, f"`{way}`", text.average([gain["mean_of_model"]]), text.signed(gain), text.each_seed(gain)]
            for model, found in over.items()
            for way, gain in found.items()
        ]
        told += f"\n\n{text.table(head, ways)}"
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
    return f"{text.table(head, rows)}\n\n{key}\n\n{reasons}"


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
        gain = pooled.get(method) or {"mean": text.mean_of([one["gain"]["mean"] for one in found.values()])}
        by_seed = [text.signed(found[seed]["gain"]) if seed in found else "" for seed in seeds]
        marks = [few] if (few := text.how_few(found)) else []
        marks += [f"**{text.TUNED}**"] if settings.get(method) == text.TUNED else []
        name = f"{method} ({', '.join(marks)})" if marks else method
        rows.append([name, text.signed(gain), *by_seed, text.average([one["train_s"] for one in found.values()], 0)])
    head = ["method", "gain", *(f"seed {seed}" for seed in seeds), "train s"]
    of_all = " over all seeds of a bootstrap over problems, the same for all, and over seeds;" if pooled else ""
    note = (
        f"Gain in sampled accuracy over the SFT model, in brackets its 95 % interval,{of_all} of a seed over its held-"
        "out problems; loops have none on a seed, since they are measured over their last turn. `train s`: seconds of "
        "training, of ReST those of its last stages."
    )
    return f"{text.table(head, rows)}\n\n{note}{_process_rewards(results['process_rewards'])}"


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
