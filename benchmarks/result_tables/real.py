"""Tables of what was measured on a real chat model."""

from __future__ import annotations

import math
import re

from result_tables import text
from result_tables.text import Json

__all__ = ["forgetting_table", "gradient_checkpointing_table", "grpo_real_table", "real_kills_table", "real_table"]

WAYS_OF = ("chain_of_thought", "react", "reflection", "strategies")
COUNTS = re.compile(r"\b((?:n|rounds|trials|waits|layers|branches|max_steps)=\d+)")
MEASURES = {"chain_of_thought": "with worked examples", "sampled": "sampled", "greedy": "greedy"}


def gradient_checkpointing_table(results: Json) -> str:
    """One row per model: what checkpointing costs in CPU time, and the memory that it saves."""
    rows = []
    for name, found in results["cases"].items():
        peak = found["peak_mib"]
        rows.append(
            [
                name,
                f"{found['rows']} x {found['tokens']}",
                text.ratio(found["time_ratio"]),
                f"{found['saved_mib']['median']:.0f} MiB",
                f"{peak['without']['median']:.0f} -> {peak['with']['median']:.0f} MiB",
            ]
        )
    head = ["SFT", "rows x tokens", "CPU time, with / without", "memory saved", "peak, without -> with"]
    note = f"Medians of {results['pairs']} interleaved pairs of {results['steps']} steps with 95 % intervals."
    return f"{text.table(head, rows)}\n\n{note}"


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
                    text.signed(gain),
                    f"{text.each_seed(gain)} ({text.which_seeds(gain['by_seed'])})",
                ]
            )
    head = ["recipe", "model, accuracy", "over", "gain [95 %]", "by seed"]
    note = (
        f"{_problems(results)} of an exam that was opened when all settings stood. The interval is of a bootstrap over "
        f"problems, which are the same for all seeds, and over seeds.{_minutes(results)}"
    )
    return f"{text.table(head, rows)}\n\n{note}{_ways_table(results)}"


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
            few = f" ({text.how_few(range(way['seeds']))})" if way["seeds"] < text.THREE else ""
            rows.append(
                [f"`real/{recipe}`{few}", way["model"], name, f"{mean} [{low}, {high}]", f"{way['tokens']:.0f}"]
            )
    if not rows:
        return ""
    note = "Tokens: read and written. *checker*: told by the exam's own checker what is wrong, or picked by it."
    return (
        f"\n\n{text.table(['recipe', 'model', 'way of asking', 'accuracy [95 %]', 'tokens a problem'], rows)}\n\n{note}"
    )


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
        recipe: text.mean_of([sum(seed["seconds"].values()) / 60 for seed in found["seeds"].values()])
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
    nats = {name: text.mean_of([math.log(one["models"][name]["mean"]) for one in kept]) for name in models}
    first, trained = models[:2]
    rows = []
    for name in models:
        perplexity = [one["models"][name] for one in kept]
        accuracy = gains[name]["mean_of_model"] if name in gains else gains[trained]["mean_of_other"]
        changes = [one["over"][first] for one in perplexity if first in one.get("over", {})]
        cells = [
            f"`{name}`",
            f"{accuracy:.2f}",
            text.over_seeds(perplexity),
            f"x {text.over_seeds(changes)}" if changes else "",
        ]
        is_remedy = name not in (first, trained)
        lost = (nats[trained] - nats[name]) / (nats[trained] - nats[first])
        rows.append([*cells, *([f"{gain_of[name] / gain_of[trained]:.0%}", f"{lost:.0%}"] if is_remedy else ["", ""])])
    head = ["model", "accuracy, greedy", "perplexity of English [95 %]", f"paired, over `{first}`"]
    head += ["of the gain", "of the loss given back"]
    problems = len(next(iter(next(iter(next(iter(seeds.values()))["values"].values())).values())))
    note = (
        f"{problems} problems and {kept[0]['rows']} paragraphs of an exam that was opened when all settings stood; "
        f"{text.which_seeds(seeds)}. The loss is counted in nats per token, the change paired by paragraph."
        f"{_minutes(results)}"
    )
    return f"{text.table(head, rows)}\n\n{note}"


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
        rows.append([name, *sides, text.ratio(results["ratio"][what])])
    pairs, steps = results["pairs"], results["steps"]
    first = pairs[0]["plain"]["log"]
    same = "equal to the last bit" if results["is_equal"] else "NOT EQUAL"
    note = (
        f"Losses, norms of the gradients, rewards and the trained weights of all {2 * len(pairs)} runs: {same} "
        f"(losses {', '.join(format(row['loss'], '.4f') for row in first)}). Medians of {len(pairs)} interleaved pairs "
        f"with 95 % intervals, {steps} steps after one to warm up, {results['args']['per_device_train_batch_size']} "
        "completions a step; the whole process imports, loads, trains and saves."
    )
    return f"{text.table(['GRPO of SmolLM2-135M, LoRA', 'recipe', 'plain TRL', 'recipe / plain'], rows)}\n\n{note}"


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
    return f"{text.table(head, rows)}\n\n{note}"


def _way(model: str, measure: str) -> str:
    return f"{model}, {MEASURES.get(measure, measure.replace('_', ' '))}"
