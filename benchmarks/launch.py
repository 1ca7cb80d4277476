"""Train every kind of stage through `posttrain run --launch` on two processes, under each engine, and in one process.

A model of hidden size 32 takes three optimizer steps of eight rows, in float32. Compared are the losses of the steps
by engine and kind, and of the artifacts whether each loads in one process with no weight missing or left over, and how
far its weights are from DDP's. accelerate has FSDP2 on GPUs alone: on a CPU it has the shim of `tests/fsdp_on_cpu`.

    python benchmarks/launch.py                                  # all engines that are installed
    python benchmarks/launch.py --engines ddp --kinds sft ppo    # adds to what the results file has
    python benchmarks/launch.py --next                           # the first cell that the file lacks, and no more
    make bench-launch                                            # all, with DeepSpeed; NEXT=1 as `--next`

The file is written after each cell, and a cell that this commit has measured stands: the same command goes on after a
stop. Each cell says its commit.
Losses of GRPO and PPO depend on the samples, which each process draws from its own seed: they are compared among the
engines and not with one process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import record

from posttrain_plugins.record.figures import read_figures

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("one process", "ddp", "zero1", "zero2", "zero3", "fsdp2")
ROWS, STEPS = 24, 3
CLOSE = 1e-4  # four digits
LORA = "adapter: {use: lora, r: 4}"
SAMPLED = "max_completion_length: 8, num_generations: 4"
KINDS: dict[str, tuple[str, str, str]] = {  # kind -> its data, further fields, further args
    "sft": ("demos", "", ""),
    "sft_lora": ("demos", LORA, ""),
    "reward": ("pairs", "", ""),
    "dpo": ("pairs", "", ""),
    "prm": ("steps", "", 'step_separator: ";"'),
    "oreo": ("scored", "", ""),
    "oreo_lora": ("scored", LORA, ""),
    "grpo": ("problems", "rewards: [{file}]", f"{SAMPLED}, beta: 0.05"),
    "ppo": ("problems", "rewards: [{file}]", "max_completion_length: 8, kl_coef: 0.05"),
    "ppo_lora": ("problems", f"rewards: [{{file}}], {LORA}", "max_completion_length: 8, kl_coef: 0.05"),
}
SAMPLES = ("grpo", "ppo", "ppo_lora")
HEAD = """
name: launch
seed: 5
model:
  use: random_init
  tokenizer: posttrain_plugins.tiny_world.tokenizer:tokenizer
  config: {model_type: qwen3, hidden_size: 32, num_hidden_layers: 2, intermediate_size: 64, num_attention_heads: 2,
           num_key_value_heads: 2, head_dim: 16, tie_word_embeddings: true, initializer_range: 0.05,
           max_position_embeddings: 256}
stages:
"""
ARGS = (
    f"max_steps: {STEPS}, learning_rate: 1e-2, lr_scheduler_type: constant, gradient_checkpointing: false, "
    "logging_steps: 1, bf16: false"
)
REWARD = """
def digits(completions, **columns):
    return [sum(x.isdigit() for x in str(c)) / 8 for c in completions]
"""


def main() -> int:
    options = _options()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = _earlier(options.out)
    write_data(folder)
    asked = [(engine, kind) for engine in options.engines if _is_here(engine) for kind in options.kinds]
    missing = [one for one in asked if options.again or not _stands(results, *one, of_any_commit=options.next)]
    for engine, kind in missing[:1] if options.next else missing:
        began = time.perf_counter()
        made = {**cell(folder, engine, kind), "commit": record.commit()}
        results["cells"].setdefault(kind, {})[engine] = made
        results["seconds"] = round(results.get("seconds", 0.0) + time.perf_counter() - began, 1)
        every = ((engine, kind) for engine in ENGINES for kind in KINDS)
        results["is_complete"] = all(_stands(results, *one, of_any_commit=options.next) for one in every)
        record.write("launch", results, options.out)
    print(f"{len(missing[1:]) if options.next else 0} cells are left", file=sys.stderr)
    wrong = differences(results["cells"])
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _is_here(engine: str) -> bool:
    found = not engine.startswith("zero") or importlib.util.find_spec("deepspeed") is not None
    if not found:
        print(f"{engine}: not measured, deepspeed is not installed: make bench-launch", file=sys.stderr)
    return found


def _stands(results: dict[str, Any], engine: str, kind: str, of_any_commit: bool) -> bool:
    """Tell whether a cell was measured, by this commit where another's does not do."""
    made = results["cells"].get(kind, {}).get(engine, {"error": "not measured"})
    return not made.get("error") and (of_any_commit or made.get("commit") == record.commit())


def differences(cells: dict[str, dict[str, Any]]) -> list[str]:
    """What is not as it has to be: losses to four digits, artifacts that load."""
    found = []
    for kind, engines in cells.items():
        expected = engines.get("ddp", {}).get("losses")
        for engine, made in engines.items():
            if made.get("error"):
                found.append(f"{kind} under {engine}: {made['error']}")
                continue
            found += [f"{kind} under {engine}: {name}" for name in made["unexpected"]]
            is_compared = expected and not (engine == "one process" and kind in SAMPLES)
            if is_compared and not all(abs(a - b) < CLOSE for a, b in zip(made["losses"], expected, strict=True)):
                found.append(f"{kind} under {engine}: {made['losses']}, under ddp {expected}")
    return found


def write_data(folder: Path) -> None:
    """Write rows for each kind of stage, and the reward."""
    from posttrain_plugins.datasets.digit_chain import DigitChain

    problems = DigitChain(size=ROWS)().to_list()
    pairs = [
        {"prompt": row["prompt"], **{name: _answer(int(row["solution"]) + k) for name, k in SIDES}} for row in problems
    ]
    tables = {
        "problems": [{"prompt": row["prompt"]} for row in problems],
        "demos": DigitChain(part="demonstrations", size=ROWS)().to_list(),
        "pairs": pairs,
        "steps": [_steps(i, 1 + i % 4) for i in range(ROWS)],  # processes end a different number of steps
        "scored": [
            {"prompt": r["prompt"], "completion": r["chosen"], "reward": float(i % 2)} for i, r in enumerate(pairs)
        ],
    }
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")


SIDES = (("chosen", 0), ("rejected", 3))


def _answer(value: int) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": f"<answer>{value % 10}</answer>"}]


def _steps(i: int, count: int) -> dict[str, Any]:
    return {"prompt": f"{i}:", "completions": [f"{i % 10};"] * count, "labels": [bool(i % 3)] * count}


def cell(folder: Path, engine: str, kind: str) -> dict[str, Any]:
    """Run one kind under one engine, and return its losses and what its artifact is."""
    data, fields, args = KINDS[kind]
    is_alone = engine == "one process"
    batch = f"per_device_train_batch_size: {8 if is_alone else 4}"
    more = f", {fields.replace('{file}', './reward.py:digits')}" if fields else ""
    given = f"{{{', '.join(part for part in (ARGS, batch, args) if part)}}}"
    use = kind.removesuffix("_lora")
    stage = f"  {kind}: {{use: {use}, model: base, dataset: {{path: ./{data}.jsonl}}{more}, args: {given}}}\n"
    recipe = folder / f"{'one' if is_alone else 'two'}_{kind}.yaml"
    recipe.write_text(HEAD + stage, encoding="utf-8")
    runs = folder / engine.replace(" ", "_")
    words = [sys.executable, "-m", "posttrain_plugins", "run", str(recipe), "--runs-dir", str(runs)]
    words += [] if is_alone else ["--launch", engine, "--num-processes", "2"]
    environment = dict(os.environ)
    if engine == "fsdp2" and not _on_gpu():
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests/fsdp_on_cpu"), os.environ.get("PYTHONPATH", "")])
    began = time.perf_counter()
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    print(f"{kind} under {engine}: {time.perf_counter() - began:.0f} s, exit code {done.returncode}", file=sys.stderr)
    if done.returncode != 0:
        return {"error": done.stderr.strip()[-600:]}
    made = (runs / "launch/latest" / kind).resolve()
    losses = [round(line.figures["loss"], 6) for line in read_figures(made) if "loss" in line.figures]
    return {"losses": losses, **compare(made / "model", folder / "ddp/launch/latest" / kind / "model")}


def compare(model: Path, ddp: Path) -> dict[str, Any]:
    """What does not load in one process, and the largest distance of a weight from DDP's."""
    from safetensors.torch import load_file

    unexpected = loaded(model)
    far = 0.0 if ddp.is_dir() else None  # DDP's was measured into another folder
    for file in sorted(ddp.rglob("*.safetensors")) if ddp.is_dir() else ():
        own, expected = load_file(model / file.relative_to(ddp)), load_file(file)
        unexpected += [f"{name} is missing" for name in expected.keys() - own.keys()]
        far = max([far or 0.0, *(float((own[n] - t).abs().max()) for n, t in expected.items() if n in own)])
    critic = model / "critic/adapter_model.safetensors"
    if critic.is_file() and not any(t.any() for n, t in load_file(critic).items() if "lora_B" in n):
        unexpected.append("the critic's adapter was not trained")
    return {"unexpected": unexpected, "from_ddp": far}


def loaded(model: Path) -> list[str]:
    """Load an artifact as its user would, and return what is missing or left over."""
    import transformers

    if (model / "adapter_config.json").is_file():
        from posttrain_plugins.models.load import load_adapted

        load_adapted(str(model))
        return []
    name = transformers.AutoConfig.from_pretrained(str(model)).architectures[0]
    _, told = getattr(transformers, name).from_pretrained(str(model), output_loading_info=True)
    return [f"{what}: {key}" for what in ("missing_keys", "unexpected_keys") for key in told[what]]


def _on_gpu() -> bool:
    import torch

    return bool(torch.accelerator.is_available())


def _earlier(out: Path) -> dict[str, Any]:
    file = out / "launch.json"
    known = json.loads(file.read_text(encoding="utf-8"))["results"] if file.is_file() else {}
    return {"cells": {}, "steps": STEPS, **known}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[*ENGINES], help="columns (all)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="rows (all)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/bench-launch"), help="of the runs; what is done stands"
    )
    parser.add_argument("--next", action="store_true", help="the first cell that is missing, and no more")
    parser.add_argument("--again", action="store_true", help="also cells that stand")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of launch.json")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
