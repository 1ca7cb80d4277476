"""Tables of time, memory, processes and kills."""

from __future__ import annotations

from result_tables import text
from result_tables.text import Json

__all__ = [
    "faults_table",
    "gpu_table",
    "kills_table",
    "launch_table",
    "memory_plan_table",
    "overhead_table",
    "ppo_memory_table",
    "share_prompts_table",
    "store_kills_table",
]

WAYS = {"plain": "as TRL does", "shared": "shared"}
ALONE = "one process"


def overhead_table(results: Json) -> str:
    """One row per method: the ratio recipe / plain TRL."""
    rows = []
    for method, found in results["methods"].items():
        train, whole = found["ratio"]["train"], found["ratio"]["whole"]
        extra = found["extra_whole_s"]
        rows.append([method.upper(), text.ratio(train), text.ratio(whole), f"{extra['median']:.2f} s"])
    head = ["method", "training, recipe / plain TRL", "whole stage, recipe / plain TRL", "whole stage, added"]
    note = f"Medians of {results['pairs']} interleaved pairs of {results['steps']} steps with 95 % intervals."
    return f"{text.table(head, rows)}\n\n{note}"


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
    return f"{text.table(head, rows)}\n\n{note}"


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
    return f"{text.table(head, rows)}\n\n{note}"


def share_prompts_table(results: Json) -> str:
    """One row per case: how much faster a step is, what generation takes of it, and the way that the formula took."""
    rows = []
    for name, found in results["cases"].items():
        shares = [f"{found['shares'][side]['generation']:.0%}" for side in ("plain", "shared")]
        step = [f"{found['step_s'][side]:.1f} s" for side in ("plain", "shared")]
        ways = ", ".join(f"`{way}`" for way, count in found["way"]["passes"].items() if count)
        ratios = [text.ratio(found["speedup"]), f"{found['goal']:.2f} ({found['accepted']:.2f})"]
        ratios.append(text.ratio(found["passes_speedup"]))
        rows.append([name, str(len(found["pairs"])), *ratios, " -> ".join(shares), " -> ".join(step), ways])
    head = ["prompt, completion", "pairs", "step, times faster", "goal (accepted)", "its passes alone"]
    note = (
        f"Medians of interleaved pairs of steps with 95 % intervals, in CPU time; groups of {results['group']}, LoRA, "
        "`beta` above 0. The first ratio has `rollouts: engine` in it."
    )
    if curves := results.get("curves"):
        ends = {side: [text.mean_of(one[side][-len(one[side]) // 5 :]) for one in curves.values()] for side in WAYS}
        told = "; ".join(
            f"{text.average(of)} ({', '.join(f'{value:.3f}' for value in of)}) {WAYS[side]}"
            for side, of in ends.items()
        )
        note += (
            f" What is learned, the quickstart's GRPO on {text.which_seeds(curves)}: mean reward of the last fifth of "
            f"the steps {told}."
        )
    return f"{text.table([*head, 'share of generation', 'CPU time of a step', 'way'], rows)}\n\n{note}"


def gpu_table(results: Json) -> str:
    """One row per method and side."""
    rows = []
    for method, sides in results["methods"].items():
        for side, found in sides.items():
            peak = "" if found["peak_gib"] is None else f"{found['peak_gib']:.2f}"
            rows.append([f"{method.upper()}, {side}", f"{found['tokens_per_s']:,.0f}", f"{found['step_s']:.3f}", peak])
    return text.table(["Qwen3-0.6B shape, 4-bit + LoRA", "tokens/s", "median step, s", "peak GiB"], rows)


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
    return f"{text.table(head, rows)}\n\n{note}"


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
    return f"{text.table(['stage', *phases], rows)}\n\n{note}"


def _is_whole(row: Json) -> bool:
    return row["equal"] and not row["corrupt"] and "error" not in row


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
    return f"{text.table(head, rows)}\n\n{note}"


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
