"""The benchmarks: they teach with `--help`, refuse what they cannot measure, and fill the README from their results."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = (
    "adapters.py",
    "all.py",
    "annotate_page.py",
    "cached.py",
    "critic.py",
    "kills.py",
    "mutated_recipes.py",
    "endpoint.py",
    "engine.py",
    "faults.py",
    "gpu/memory_plan.py",
    "gpu/recipes.py",
    "gpu/run.py",
    "gradient_checkpointing.py",
    "grpo_real.py",
    "guard.py",
    "human_feedback.py",
    "in_process.py",
    "launch.py",
    "math_reward.py",
    "memory_plan.py",
    "methods.py",
    "overhead.py",
    "ppo_memory.py",
    "ppo_parity.py",
    "process_rewards.py",
    "quickstart_seeds.py",
    "real.py",
    "real_kills.py",
    "recipes.py",
    "recorder.py",
    "render.py",
    "report_page.py",
    "search.py",
    "share_prompts.py",
    "startup.py",
    "store_kills.py",
    "test_time.py",
    "value.py",
)
PARTS = {
    "record.py",
    "levels.py",
    "trained_rows.py",
    "series.py",
    "endpoint_peers.py",
    "endpoint_server.py",
    "ppo_tensors.py",
    *(f"result_tables/{name}.py" for name in ("__init__", "learning", "machine", "overview", "real", "recipes")),
    *(f"result_tables/{name}.py" for name in ("strategies", "text")),
}  # what the scripts are made of


def call(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def interval(mean: float, width: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - width, "high": mean + width}


def details() -> dict[str, Any]:
    """What `evaluate` gives for the quickstart, with every claim kept."""

    def model(parent: str | None, sampled: float) -> dict[str, Any]:
        labels = {
            "greedy": 0.2,
            "majority": 0.2,
            "best_of_n(n=8, scorer=rm)": 0.2,
            "best_of_n(n=8, scorer=newer_rm)": 0.2,
            "best_of_n(n=8, scorer=correct) (oracle)": 0.3,
        }
        measures = {"sampled": {"rewards": {"correct": interval(sampled)}, "pass_at": {"8": 0.9}, "over_optimised": {}}}
        measures |= {name: {"rewards": {"correct": interval(sampled + more)}} for name, more in labels.items()}
        gain = {"over": parent, "measures": {"sampled": interval(0.2)}} if parent else {}
        return {"parent": parent, "measures": measures, "gain": gain}

    parents = {"base": (None, 0.3), "sft": ("base", 0.5), "dpo": ("sft", 0.7), "grpo": ("sft", 0.7)}
    return {
        "metric": "correct",
        "problems": 300,
        "overlap": dict.fromkeys(parents, 0),
        "models": {name: model(*given) for name, given in parents.items()},
    }


def manifests(rm_accuracy: float = 0.85) -> dict[str, Any]:
    names = ("base", "sft", "pairs", "rm", "dpo", "grpo", "eval")
    found: dict[str, Any] = {name: {"seconds": 10.0, "metrics": {}} for name in names}
    found["rm"]["metrics"]["eval_accuracy"] = rm_accuracy
    return found


def test_every_benchmark_is_listed_here() -> None:
    found = {str(file.relative_to(BENCHMARKS)) for file in BENCHMARKS.rglob("*.py")} - PARTS
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_teaches(script: str) -> None:
    done = call(script, "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout
    assert f"python benchmarks/{script}" in done.stdout


@pytest.mark.parametrize("script", ["gpu/run.py", "gpu/recipes.py"])
def test_gpu_benchmark_refuses_without_cuda(script: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU, so nothing to refuse")
    done = call(script)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no CUDA GPU: torch.cuda.is_available() is False")
    assert f"hint: python benchmarks/{script} --tiny" in done.stderr


@pytest.mark.slow
def test_gpu_benchmark_runs_a_toy_and_both_sides_agree(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    done = call("gpu/run.py", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    methods = json.loads((tmp_path / "gpu_tiny.json").read_text(encoding="utf-8"))["results"]["methods"]
    assert methods.keys() == {"sft", "grpo"}
    for sides in methods.values():
        assert sides["recipe"]["losses"] == sides["plain"]["losses"]
        assert all(side["tokens_per_s"] > 0 and side["step_s"] > 0 and side["steps"] == 2 for side in sides.values())
        assert sides["recipe"]["tokens"] == sides["plain"]["tokens"]


@pytest.mark.slow
def test_every_stage_of_a_gpu_recipe_runs_as_a_toy(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    done = call("gpu/recipes.py", "qlora_8b", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu_recipes_tiny.json").read_text(encoding="utf-8"))["results"]
    assert results["recipe"] == "gpu/qlora_8b"
    assert list(results["stages"]) == ["sft", "rm", "dpo", "grpo", "ppo"]
    for figures in results["stages"].values():
        assert figures["tokens_per_s"] > 0
        assert (figures["steps"], len(figures["losses"])) == (2, 2)


@pytest.mark.gpu
@pytest.mark.slow
def test_gpu_benchmark_on_a_gpu(tmp_path: Path) -> None:
    done = call("gpu/run.py", "--steps", 4, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    methods = json.loads((tmp_path / "gpu_qwen3_0.6b.json").read_text(encoding="utf-8"))["results"]["methods"]
    assert all(side["peak_gib"] > 0 for sides in methods.values() for side in sides.values())


@pytest.mark.slow
def test_ppo_memory_counts_the_copies_of_the_base(tiny_model: Path, tmp_path: Path) -> None:
    """Judges on the stack add their adapters; merged ones a model each, in memory and on disk."""
    model = f"{{model_name_or_path: {tiny_model}}}"
    done = call("ppo_memory.py", "--runs", 1, "--model", model, "--folder", tmp_path / "runs", "--out", tmp_path)
    assert done.returncode in (0, 1), done.stderr  # of so small a base an adapter is half
    rows = json.loads((tmp_path / "ppo_memory.json").read_text(encoding="utf-8"))["results"]["rows"]
    found = {(row["roles"], row["judges"]): (row["bases_in_memory"], row["bases_on_disk"]) for row in rows}
    assert len(found) == 7
    # on disk, where an adapter of so small a base is nearly a base; in memory it is lost in what libraries take
    more = [found[roles, "merge"][1] - found[roles, "stack"][1] for roles in ("and reward model", "and PRM")]
    assert 0.1 < more[0] < more[1], found


@pytest.mark.slow
def test_memory_plan_is_exact_on_a_tiny_model(tmp_path: Path) -> None:
    """What of a training no allocator decides; a full model, an adapter, and a head."""
    cases = ["sft_full", "sft_lora", "reward_lora"]
    done = call("memory_plan.py", "--tiny", "--cases", *cases, "--folder", tmp_path / "runs", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "memory_plan.json").read_text(encoding="utf-8"))["results"]["cases"]
    assert [row["case"] for row in rows] == cases
    assert all(row["is_exact"] for row in rows)


@pytest.mark.slow
def test_the_recorder_costs_no_bit(tmp_path: Path) -> None:
    """What it takes on this machine is not judged here."""
    call("recorder.py", "--runs", "1", "--steps", "2", "--methods", "sft", "--out", tmp_path)
    found = json.loads((tmp_path / "recorder.json").read_text(encoding="utf-8"))["results"]["methods"]["sft"]
    assert found["bit_equal"]
    assert {"figures", "memory"} <= found["parts"][0].keys()


def test_overhead_writes_ratios_and_where_they_come_from(tmp_path: Path) -> None:
    done = call("overhead.py", "--pairs", 1, "--steps", 2, "--methods", "sft", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "overhead.json").read_text(encoding="utf-8"))
    assert written["results"]["methods"]["sft"]["ratio"].keys() == {"train", "whole", "whole_cpu"}
    assert {"commit", "date", "hardware", "versions", "python"} <= written["environment"].keys()
    assert written["environment"]["hardware"]["cpu"]


def test_claims_of_the_quickstart_hold(benchmark: Any) -> None:
    seeds = benchmark("quickstart_seeds")
    found = seeds.collect(details(), manifests())
    assert list(seeds.unmet(found)) == []
    assert found["models"]["grpo"]["gain"] == interval(0.2)
    assert found["seconds"]["rm"] == 10.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d, m: d["models"]["dpo"]["gain"]["measures"].update(sampled=interval(0.05)), "dpo's gain over sft"),
        (lambda d, m: d["models"]["grpo"].update(gain={}), "grpo's gain over None is None"),
        (lambda d, m: m["rm"]["metrics"].update(eval_accuracy=0.79), "reward model on held-out pairs is 0.790"),
        (
            lambda d, m: d["models"]["sft"]["measures"]["majority"].update(rewards={"correct": interval(0.4)}),
            "majority",
        ),
        (lambda d, m: d["overlap"].update(sft=3), "sft was trained on 3"),
    ],
)
def test_a_claim_that_fails_is_told(benchmark: Any, change: Any, told: str) -> None:
    seeds = benchmark("quickstart_seeds")
    given = details(), manifests()
    change(*given)
    missed = list(seeds.unmet(seeds.collect(*given)))
    assert len(missed) == 1
    assert told in missed[0]


def test_a_scorer_that_is_followed_too_far_has_to_be_told(benchmark: Any) -> None:
    """Once it is said, only the one that was trained again has to be better than the first."""
    seeds, tables = benchmark("quickstart_seeds"), benchmark("result_tables.recipes")
    given = details()
    of_dpo, of_grpo = (given["models"][name]["measures"] for name in ("dpo", "grpo"))
    for scorer in ("rm", "newer_rm"):
        of_dpo[f"best_of_n(n=8, scorer={scorer})"] = {"rewards": {"correct": interval(0.6)}}
    of_grpo["best_of_n(n=8, scorer=rm)"] = {"rewards": {"correct": interval(0.8)}}
    missed = list(seeds.unmet(seeds.collect(given, manifests())))
    assert missed == [
        f"dpo's best of 8 by {scorer} is 0.600, below one sample 0.700, and nothing says so"
        for scorer in ("rm", "newer_rm")
    ]
    of_dpo["sampled"]["over_optimised"] = {"rm": {}, "newer_rm": {}}
    found = seeds.collect(given, manifests())
    assert list(seeds.unmet(found)) == []
    missed = seeds.over_seeds({"0": found})["missed"]
    assert missed == ["dpo: best of 8 by the newer reward model is 0.600, by the first one 0.600"]
    assert "0.60 (over-optimised, 1 of 1)" in tables.quickstart_table({"seeds": {"0": found}})


def way(mean: float = 0.5) -> dict[str, Any]:
    """One way of answering, as `test_time.collect` gives it."""
    costs = {"tokens": 40.0, "calls": 1, "seconds": 0.1, "errors": 0, "is_pareto": False}
    return {**interval(mean), **costs, "best_of_n_at_its_tokens": 0.4}


def tried() -> tuple[str, ...]:
    test_time = importlib.import_module("test_time")
    return (*test_time.ABOVE_SAMPLED, test_time.WEIGHTED)


def seeds_summary(ways: dict[str, Any]) -> dict[str, Any]:
    return dict(importlib.import_module("test_time").summary([{"ways": ways}]))


def test_a_curve_is_read_between_its_points(benchmark: Any) -> None:
    at = benchmark("test_time").at_tokens
    points = [(100.0, 0.4), (200.0, 0.6), (400.0, 0.7)]
    assert [at(points, tokens) for tokens in (50, 100, 150, 300, 900)] == pytest.approx([0.4, 0.4, 0.5, 0.65, 0.7])


def test_what_test_time_misses_is_told(benchmark: Any) -> None:
    module = benchmark("test_time")
    good = {"sampled": way(0.3), "greedy": way(0.6), **dict.fromkeys(tried(), way(0.7))}
    for change, told in (
        ({}, []),
        ({tried()[0]: way(0.2)}, [f"seed 0: {tried()[0]} is 0.200, not above sampled 0.300"]),
        ({tried()[-1]: way(0.5)}, ["votes weighted by the PRM: 0.500, below greedy 0.600"]),
    ):
        ways = {**good, **change}
        results = {"seeds": {"0": {"ways": ways, "overlap": {}}}, "strategies": module.summary([{"ways": ways}])}
        assert list(module.unmet(results)) == told


def results_folder(folder: Path, seeds: Any, record: Any) -> Path:
    one = seeds.collect(details(), manifests())
    record.write("quickstart_seeds", {"seeds": {"0": one, "1": one}}, folder)
    ratio = {"median": 1.01, "low": 1.0, "high": 1.02}
    method = {"ratio": {"train": ratio, "whole": ratio, "whole_cpu": ratio}, "extra_whole_s": ratio}
    cell = {"refused": None, "wrong": [], "options": {}, "reload": 0.0, "merged": 3e-7, "4bit": {}}
    cells = {"lora sft": cell, "lora dpo": {**cell, "refused": "adapter 'it' in stage 'cell': it cannot (hint: none)"}}
    record.write("adapters", {"cells": cells, "steps": 4, "rows": 4}, folder)
    kill = {"stage": "dpo, lora", "after_step": 9, "harm": "optimizer.pt removed", "from": "checkpoint-4"}
    kill |= {"weights": True, "log": True, "figures": False}
    record.write("kills", {"kills": [kill, {**kill, "from": "the start", "log": False}], "steps": 14}, folder)
    fault = {"kind": "sft", "number": 0, "aimed": "saving", "phase": "saving", "from": "checkpoint-4", "corrupt": []}
    fault["processes"] = 1
    lost = {**fault, "phase": "publishing", "from": "the start", "corrupt": ["it-1: no manifest"]}
    kills = [{**fault, "equal": True}, {**fault, "equal": False}, {**lost, "equal": True}]
    record.write("faults", {"kills": kills, "steps": 14}, folder)
    made = {"losses": [4.2, 3.5], "unexpected": [], "from_ddp": None, "commit": "0" * 40}
    cells = {"sft": {"one process": made, "ddp": {**made, "from_ddp": 0.0}, "zero2": {**made, "from_ddp": 2e-6}}}
    cells |= {"ppo": {"ddp": {"error": "no gloo", "commit": "0" * 40}}}
    record.write("launch", {"cells": cells, "steps": 2}, folder)
    record.write("store_kills", {"kills": 3, "phases": {"saving": 3}, "wrong": [], "went_on": 2}, folder)
    critic = {"curves": {"explained": [0.0, 0.5], "reward": [0.1, 0.3]}, "held_out": 0.25, "train_s": 12.0}
    record.write("critic", {"rollouts": 2, "rows": {"zero": {"0": critic}}}, folder)
    value = {"states": 400, "explained": 0.4, "bound": 0.5, "share": 0.8, "share_low": 0.7, "share_high": 0.9}
    record.write("value", {"rollouts": 16, "rows": {"sft": {"0": value}}}, folder)
    over = {"mean": 0.1, "low": 0.05, "high": 0.15, "by_seed": {"0": 0.1}}
    tried_ways = {"greedy": {"mean": 0.5, "tokens": 40.0, "best_at_its_tokens": {"rm": 0.5, "prm": 0.4}}}
    tried_ways["mcts(n=2)"] = {**tried_ways["greedy"], "mean": 0.6, "over_greedy": over}
    for name, by in (("search", ("rm", "prm")), ("tree", ("ahead",)), ("graph", ("checked",))):
        best = dict.fromkeys(by, 0.4)
        strategies = {way: {**told, "best_at_its_tokens": best} for way, told in tried_ways.items()}
        record.write(name, {"seeds": {"0": {"problems": 4}}, "strategies": strategies}, folder)
    reached = {"steps_to": {"0.70": 10}, "completions_to": {"0.70": 1280}, "judge_completions": 0}
    rows = {"ppo_outcome": {"0": {"gold": 0.75, **reached, "hacked": None, "train_s": 60.0}}}
    record.write("process_rewards", {"steps": 60, "completions_a_step": 128, "levels": [0.7], "rows": rows}, folder)
    record.write("overhead", {"pairs": 5, "steps": 60, "methods": {"sft": method}}, folder)
    ways = dict.fromkeys(("sampled", "greedy", *tried()), way())
    record.write(
        "test_time", {"seeds": {"0": {"problems": 4, "ways": ways}}, "strategies": seeds_summary(ways)}, folder
    )
    one = {"gain": interval(0.3), "sampled": interval(0.9), "greedy": 1.0, "train_s": 50.0}
    loop = {**one, "gain": {"mean": 0.2}}
    compared = importlib.import_module("methods").compare([0.2, 0.4, 0.6, 0.6], [0.4, 0.8, 0.8, 0.8])
    methods = {"GRPO": {"0": one, "1": one}, "RAFT": {"0": loop}}
    record.write("methods", {"methods": methods, "process_rewards": {"0": compared}}, folder)
    row = {"roles": "and PRM", "judges": "stack", "bases_in_memory": 1.131, "bases_on_disk": 1.25}
    row |= {"base_mib": 513.1, "peak_mib": 1800.0, "peak_mib_over_policy": 70.4}
    saved = {"median": 310.0, "low": 300.0, "high": 320.0}
    case = {"rows": 4, "tokens": 128, "time_ratio": ratio, "saved_mib": saved, "peak_mib": {}}
    case["peak_mib"] = dict.fromkeys(("with", "without"), saved)
    record.write("gradient_checkpointing", {"pairs": 3, "steps": 2, "cases": {"SmolLM2-135M, LoRA": case}}, folder)
    record.write("ppo_memory", {"runs": 3, "rows": [row]}, folder)
    parts = {"parameters": 5.5e6, "gradients": 5.5e6, "optimizer": 11e6, "peak": 30e6}
    case = {"case": "sft_full", "planned": parts, "measured": parts, "is_exact": True, "off": 0.012, "is_within": True}
    record.write("memory_plan", {"steps": 2, "rows": 2, "length": 64, "prompt": 32, "cases": [case]}, folder)
    shared = {
        "speedup": ratio,
        "passes_speedup": ratio,
        "goal": 1.3,
        "accepted": 1.15,
        "way": {"passes": {"block": 4}},
        "pairs": [1],
    }
    shared |= {
        "shares": {side: {"generation": 0.4} for side in ("plain", "shared")},
        "step_s": {"plain": 9.0, "shared": 8.0},
    }
    curves = {"0": {"plain": [0.1, 0.5, 0.5, 0.5, 0.9], "shared": [0.1, 0.5, 0.5, 0.5, 0.8]}}
    record.write("share_prompts", {"group": 8, "cases": {"64, 64": shared}, "curves": curves}, folder)
    values = {"sft": {"sampled": [0.0, 1.0]}, "ppo": {"sampled": [1.0, 1.0]}}
    seeds_of = {"0": {"values": values, "seconds": {"ppo": 60.0}}}
    real = {"ppo": {"seeds": seeds_of, "gains": importlib.import_module("real").pooled("ppo", seeds_of)}}
    record.write("real", {"threads": 1, "recipes": real}, folder)
    record.write("real_strategies", {"threads": 1, "recipes": real}, folder)
    values = {"base": {"greedy": [0.0, 0.0]}, "sft": {"greedy": [1.0, 1.0]}, "half": {"greedy": [0.0, 1.0]}}
    read = {name: interval(mean) for name, mean in {"base": 10.0, "sft": 1000.0, "half": 100.0}.items()}
    read["half"] |= {"over": {"base": interval(10.0)}}  # type: ignore[dict-item]
    seeds_of = {"0": {"values": values, "seconds": {"sft": 60.0}, "retain": {"english": {"rows": 7, "models": read}}}}
    gains = importlib.import_module("real").pooled("forgetting", seeds_of)
    forgets = {"forgetting": {"seeds": seeds_of, "gains": gains}}
    record.write("real_forgetting", {"threads": 1, "recipes": forgets}, folder)
    row = {"stage": "sft", "after_step": 2, "after_s": 4.0, "of_s": 9.0, "from": "checkpoint-1", "weights": True}
    row |= {"data": True, "figures": False}
    record.write("real_kills", {"kills": [row], "steps": 3}, folder)
    taken = dict.fromkeys(("train_s", "train_cpu_s", "whole_s", "peak_gib"), ratio)
    pair = {"plain": {"log": [{"loss": 0.25}]}}
    sides = {"args": {"per_device_train_batch_size": 16}, "ratio": taken, "sides": {"recipe": taken, "plain": taken}}
    record.write("grpo_real", {"steps": 3, "is_equal": True, "pairs": [pair], **sides}, folder)
    side = {"tokens_per_s": 1234.5, "step_s": 0.5, "peak_gib": 3.21}
    record.write("gpu_qwen3_0.6b", {"methods": {"sft": {"recipe": side, "plain": side}}}, folder)
    return folder


def test_render_fills_every_table_and_check_tells_a_stale_one(benchmark: Any, tmp_path: Path) -> None:
    render = benchmark("render")
    folder = results_folder(tmp_path / "results", benchmark("quickstart_seeds"), benchmark("record"))
    file = tmp_path / "README.md"
    blocks = [f"<!-- results:{name} -->\nstale\n<!-- /results -->" for name in render.TABLES]
    file.write_text("before\n" + "\nbetween\n".join(blocks) + "\nafter\n", encoding="utf-8")
    header = "# What it does.\n# Results: benchmarks/results/quickstart_seeds.json\n#   stale\nname: it\n"
    (tmp_path / "it.yaml").write_text(header, encoding="utf-8")
    options = ["--file", file, tmp_path / "it.yaml", "--results", folder]
    assert call("render.py", "--check", *options).returncode == 1
    assert "stale" in file.read_text(encoding="utf-8"), "--check changes nothing"
    assert call("render.py", *options).returncode == 0
    text = file.read_text(encoding="utf-8")
    assert "stale" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| grpo | 0.70 [0.60, 0.80] | +0.20 [+0.10, +0.30] over sft | +0.20, +0.20 |" in text
    assert "\n2 seeds: 0, 1: means, and in brackets the widest ends of their 95 % intervals. Reward" in text
    assert "| `lora` | 4 | (1) | 0 | 3e-07 |" in text
    assert "1. it cannot (hint: none)" in text
    assert "| `dpo`, lora | 9, 9 | optimizer.pt removed; optimizer.pt removed | 2 of 2 | 1 of 2 | 0 of 2 |" in text
    assert "1 went on from the checkpoint before the damaged one, 1 had none and began anew" in text
    assert "| zero | 0.25 (0.25) | 0.00 | 0.50 | 0.30 | never |" in text
    assert "| SFT | 1.010 [1.000, 1.020] |" in text
    assert (
        "| 64, 64 | 1 | 1.010 [1.000, 1.020] | 1.30 (1.15) | 1.010 [1.000, 1.020] | 40% -> 40% | 9.0 s -> 8.0 s |"
        in text
    )
    assert "| `half` | 0.50 | 100.00 [99.90, 100.10] | x 10.00 [9.90, 10.10] | 50% | 50% |" in text
    assert "| `sft` | step 2, 4 of 9 s | checkpoint-1 | 1 of 1 | 1 of 1 | 0 of 1 |" in text
    assert "| peak memory in training, GiB | 1.01 | 1.01 | 1.010 [1.000, 1.020] |" in text
    assert "equal to the last bit (losses 0.2500)" in text
    assert "| SmolLM2-135M, LoRA | 4 x 128 | 1.010 [1.000, 1.020] | 310 MiB | 310 -> 310 MiB |" in text
    assert "| `sft_full` | 5.5 | 5.5 | 11.0 | equal | 30 | 30 | +1.2% |" in text
    assert "| and PRM | `stack` | 1.13 | 1.25 | +70 MiB |" in text
    assert "| SFT, recipe | 1,234 | 0.500 | 3.21 |" in text
    assert "| GRPO (2 seeds) | +0.30 | +0.30 [+0.20, +0.40] | +0.30 [+0.20, +0.40] | 50 |" in text
    assert "| RAFT (1 seed) | +0.20 | +0.20 |  | 50 |" in text
    assert "process rewards against without: 2 against 4; fewer on 1 of 1 seeds." in text
    head = (tmp_path / "it.yaml").read_text(encoding="utf-8")
    assert "#   Sampled accuracy: base 0.30, sft 0.50 (+0.20 over base; by seed +0.20, +0.20), dpo" in head
    assert head.startswith("# What it does.\n# Results: benchmarks/results/quickstart_seeds.json\n#   Sampled")
    assert head.endswith("\nname: it\n")
    assert "stale" not in head
    assert call("render.py", "--check", *options).returncode == 0


def test_check_tells_how_many_have_no_figures_yet(tmp_path: Path) -> None:
    file, recipe = tmp_path / "page.md", tmp_path / "it.yaml"
    file.write_text("<!-- results:adapters -->\n<!-- /results -->\n", encoding="utf-8")
    recipe.write_text("# Results: benchmarks/results/recipe_it.json\nname: it\n", encoding="utf-8")
    done = call("render.py", "--check", "--file", file, recipe, "--results", tmp_path / "none")
    assert done.returncode == 0, done.stderr
    lines = ["page.md: 1 without figures: no results file yet", "it.yaml: 1 without figures: no results file yet"]
    assert done.stdout.splitlines() == lines


def test_every_recipe_names_its_results_and_shows_what_stands_there(benchmark: Any) -> None:
    render = benchmark("render")
    others = {"quickstart": "quickstart_seeds"}
    others |= {name: name for name in ("test_time", "human_feedback", "search", "tree", "graph")}
    files = sorted((ROOT / "recipes").glob("[!_]*.yaml"))
    assert len(files) > 10
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert f"#   posttrain run {file.stem}\n" in text
        assert "# Hardware: " in text
        found = render.HEADER.search(text)
        assert found, file.name
        assert found["name"] == others.get(file.stem, f"recipe_{file.stem}")
        assert render.render_recipe(text, BENCHMARKS / "results") == text, "python benchmarks/render.py"


def test_methods_are_models_that_their_recipes_measure(benchmark: Any) -> None:
    from posttrain_plugins.api import plan

    for recipe, models in benchmark("methods").METHODS.items():
        measured = {source.stage for source in plan(recipe)["eval"].spec.inputs["models"]}
        assert set(models) <= measured, recipe
        assert "sft" in measured


def test_what_the_methods_miss_is_told(benchmark: Any) -> None:
    unmet = benchmark("methods").unmet
    good = {str(seed): {"gain": interval(0.3 + seed / 100)} for seed in range(3)}
    assert list(unmet({"PPO": good, "GRPO": good, "REINFORCE++": good})) == []
    weak = {**good, "1": {"gain": interval(0.05)}}
    told = list(unmet({"PPO": weak}))
    assert told == [
        "PPO, seed 1: the gain's interval [-0.050, 0.150] holds 0",
        "PPO: the mean gain is 0.223, but the seeds' standard deviation 0.150",
    ]


def test_a_loops_time_is_that_of_all_its_turns(benchmark: Any) -> None:
    told = {
        "parent": "raft.1.tuned",
        "gain": interval(0.1),
        "measures": {"sampled": interval(0.9), "greedy": interval(1.0)},
    }
    first = {"parent": None, "gain": None, "measures": {"sampled": interval(0.6)}}
    metrics = {"raft.1.tuned": {"train_s": 3.0}, "raft.3.tuned": {"train_s": 4.0}, "raft.3.right": {"rows": 9.0}}
    found = benchmark("methods").of_model(
        {"models": {"raft.3.tuned": told, "sft": first}, "metrics": metrics}, "raft.3.tuned"
    )
    assert found["train_s"] == 7.0
    assert found["gain"] == {"mean": pytest.approx(0.3)}


def test_every_benchmark_has_one_row_of_the_readme() -> None:
    rows = re.findall(r"^\| `python benchmarks/([\w/]+\.py)", (BENCHMARKS / "README.md").read_text("utf-8"), re.M)
    assert sorted(rows) == sorted(set(rows))
    assert {"render.py", "gpu/recipes.py"} <= set(rows)


def test_every_marker_of_the_readme_has_a_table(benchmark: Any) -> None:
    render = benchmark("render")
    names = [block["name"] for block in render.BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert names
    assert set(names) <= render.TABLES.keys()


@pytest.mark.slow
def test_a_kill_with_a_damaged_checkpoint_comes_to_the_same_end(tmp_path: Path) -> None:
    done = call("kills.py", "--stages", "sft", "--kills", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "kills.json").read_text(encoding="utf-8"))["results"]["kills"]
    assert row["weights"]
    assert row["log"]
    assert row["figures"]


def test_a_kill_that_came_to_another_end_or_was_not_told_is_wrong(benchmark: Any) -> None:
    kills = benchmark("kills")
    kept = {
        "harm": "optimizer.pt removed",
        "told": True,
        "weights": True,
        "log": True,
        "figures": True,
        "rollouts": True,
    }
    assert kills.is_kept(kept)
    assert kills.is_kept({**kept, "harm": "complete removed", "told": False}), "as one that was being written"
    for what in ("told", "weights", "log", "figures", "rollouts"):
        assert not kills.is_kept({**kept, what: False})


def test_guard_benchmark_tells_what_the_guard_does_not_keep(benchmark) -> None:
    module = benchmark("guard")
    assert len(set(module.completions_of(200))) == 200
    assert len(module.completions_of(200, is_bad=False)) == 196
    kept = {"ratio": 1.2, "rows_lost": 0, "outcomes": {"timeout": 2, "error": 2}, "bad": {"hang": 2, "crash": 2}}
    assert module.unmet({"guarded": kept}) == []
    missed = {**kept, "ratio": 1.6, "rows_lost": 1, "outcomes": {"error": 2}}
    assert module.unmet({"guarded": missed}) == [
        "1.60 times the least time, expected 1.5",
        "1 rows lost",
        "counted {'timeout': 0, 'error': 2}, expected {'timeout': 2, 'error': 2}",
    ]


@pytest.mark.parametrize(
    ("side", "changes", "missed"),
    [
        ("new", {}, None),
        ("new", {"rewards": [0.0, 0.1, 0.2]}, "learning: ours is below"),
        ("new", {"rewards": [0.0, 0.1, 9.0]}, None),
        ("new", {"parameters": 60}, "parameters: 0.600"),
        ("new", {"optimizer": 20}, "optimizer: 0.200"),
        ("formulas", {"loss": 2e-6}, "formulas: loss differ by 2.0e-06"),
    ],
)
def test_what_ppo_parity_calls_missed(benchmark: Any, side: str, changes: dict[str, Any], missed: str | None) -> None:
    """Ours below 1.12's on every seed, too many numbers, or other formulas."""
    parity = benchmark("ppo_parity")
    run = {"rewards": [0.0, 0.5, 1.0], "train_s": 1.0, "versions": {}}
    sides = {"old": {**run, "parameters": 100, "optimizer": 100}, "new": {**run, "parameters": 40, "optimizer": 10}}
    sides |= {"formulas": {"loss": 5e-7}}
    sides[side] = {**sides[side], **changes}
    formulas = sides.pop("formulas")
    runs = {
        name: {str(seed): {**of, "rewards": [reward + seed / 100 for reward in of["rewards"]]} for seed in range(3)}
        for name, of in sides.items()
    }
    found = parity.unmet({**parity.compare(runs), "formulas": formulas})
    assert [line[: len(missed or "")] for line in found] == ([missed] if missed else [])


def test_bench_names_every_script_and_says_what_it_leaves_out(benchmark: Any, tmp_path: Path) -> None:
    everything = benchmark("all")
    parts = {"all.py", "render.py"}
    assert {f"{name}.py" for name in everything.CLAIMS} == set(SCRIPTS) - parts
    assert everything.lacking("no_such_module") == "no_such_module"
    assert everything.lacking("json") == ""
    assert "another environment" in everything.lacking("NO_SUCH_PYTHON")
    done = call("all.py", "--quick", "--only", "engine", "methods", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["results"]["scripts"]
    assert [(row["script"], row["state"]) for row in rows] == [("engine", "holds"), ("methods", "not quick")]


def test_a_claim_that_fails_stops_no_other_and_ends_with_1(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = benchmark("all")
    (tmp_path / "fails.py").write_text("raise SystemExit('the claim does not hold')", encoding="utf-8")
    (tmp_path / "holds.py").write_text("", encoding="utf-8")
    claims = {name: everything.Claim(name, "") for name in ("fails", "holds")}
    monkeypatch.setattr(everything, "CLAIMS", claims)
    monkeypatch.setattr(everything, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["all.py", "--quick", "--out", str(tmp_path / "out")])
    assert everything.main() == 1
    rows = json.loads((tmp_path / "out/all.json").read_text(encoding="utf-8"))["results"]["scripts"]
    assert [row["state"] for row in rows] == ["failed", "holds"]
    assert "does not hold" in (tmp_path / "out" / rows[0]["log"]).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("commit", "load", "told"),
    [
        ("abc", 2.9, ""),
        ("abc-dirty", 1.0, "changes that are in no commit"),
        ("abc", 3.1, "a busy machine, load 3.1 on 2 cores"),
        ("abc-dirty", 9.0, "no commit and a busy machine"),
    ],
)
def test_figures_of_doubtful_make_are_marked(benchmark: Any, commit: str, load: float, told: str) -> None:
    marked = benchmark("result_tables.text").doubts({"commit": commit, "load_average": load, "hardware": {"cores": 2}})
    assert told in marked
    assert bool(told) == bool(marked)


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_nothing_but_time(tmp_path: Path) -> None:
    done = call("faults.py", "--kinds", "random_init", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "faults.json").read_text(encoding="utf-8"))["results"]["kills"]
    assert {"loading", "publishing"} <= {row["aimed"] for row in rows}


def test_kills_cost_no_result_of_the_store(tmp_path: Path) -> None:
    done = call("store_kills.py", "--kills", 5, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "store_kills.json").read_text(encoding="utf-8"))["results"]
    assert (results["kills"], results["wrong"]) == (5, [])


def test_a_kill_that_lost_something_is_told(benchmark: Any) -> None:
    faults = benchmark("faults")
    kept = {"corrupt": [], "equal": True}
    assert faults.is_kept(kept)
    assert not faults.is_kept({**kept, "equal": False})
    assert not faults.is_kept({**kept, "corrupt": ["it-1: no manifest"]})
    assert not faults.is_kept({**kept, "error": "x"})
    assert faults.visits_of([("phase", "loading"), ("at", 1.0), ("phase", "training"), ("at", 3.0), ("at", 4.0)]) == [
        ("loading", 2.0),
        ("training", 1.0),
    ]


def test_the_engines_figures_go_on_after_a_stop_a_cell_at_a_time(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is measured again, and so is what another commit has measured, but for `--next`."""
    launch, measured = benchmark("launch"), []

    def cell(folder: Path, engine: str, kind: str) -> dict[str, Any]:
        measured.append((engine, kind))
        if (engine, kind) == ("ddp", "dpo") and len(measured) > 1:
            raise KeyboardInterrupt
        return {"losses": [1.0], "unexpected": [], "from_ddp": 0.0, **({"error": "x"} if kind == "reward" else {})}

    monkeypatch.setattr(launch, "cell", cell)
    monkeypatch.setattr(launch, "write_data", lambda folder: None)
    commit = ["a"]
    monkeypatch.setattr(launch.record, "commit", lambda: commit[0])

    def run(*words: str) -> list[tuple[str, str]]:
        given = ["launch.py", "--engines", "ddp", "--kinds", "sft", "reward", "dpo", *words]
        monkeypatch.setattr(sys, "argv", [*given, "--folder", str(tmp_path), "--out", str(tmp_path)])
        measured.clear()
        launch.main()
        return [*measured]

    with pytest.raises(KeyboardInterrupt):
        run()
    assert measured == [("ddp", "sft"), ("ddp", "reward"), ("ddp", "dpo")]
    assert {*json.loads((tmp_path / "launch.json").read_text())["results"]["cells"]} == {"sft", "reward"}
    monkeypatch.setattr(launch, "cell", lambda *one: measured.append(one[1:]) or {"losses": [1.0], "unexpected": []})
    assert run("--next") == [("ddp", "reward")]
    commit[0] = "b"
    assert run("--next") == [("ddp", "dpo")]
    assert run("--next") == []
    assert run() == [("ddp", "sft"), ("ddp", "reward")]
    assert run() == []
    assert not json.loads((tmp_path / "launch.json").read_text())["results"]["is_complete"], "the table has more cells"
    assert run("--again") == [("ddp", "sft"), ("ddp", "reward"), ("ddp", "dpo")]
