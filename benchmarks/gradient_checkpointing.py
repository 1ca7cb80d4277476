"""What gradient checkpointing costs in time and saves in memory: SFT steps with and without it, in interleaved pairs.

Each side of a pair is a process of its own: plain `trl.SFTTrainer`, a step to warm up, then steps that are measured.
Taken are CPU seconds (user and system), which a busy machine disturbs less than seconds, and the highest resident
memory of these steps over that before the first of them, with an allocator that gives back what is freed. Rows are
full of random tokens, so that each step computes the same. Models: SmolLM2-135M (LoRA, and all parameters) and the
quickstart's.

    python benchmarks/gradient_checkpointing.py --pairs 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record
from ppo_memory import GGUF, GIVES_BACK, forget_peak, peak_mib

CASES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M, LoRA": {"model": "smollm2", "rows": 4, "tokens": 128, "lora": True},
    "SmolLM2-135M, LoRA, longer rows": {"model": "smollm2", "rows": 4, "tokens": 512, "lora": True},
    "SmolLM2-135M, all parameters": {"model": "smollm2", "rows": 4, "tokens": 128, "lora": False},
    "quickstart's model, all parameters": {"model": "tiny", "rows": 32, "tokens": 64, "lora": False},
}
NEVER = """
datasets: {none: {use: digit_chain, part: demonstrations}}
stages: {never: {use: sft, model: base, dataset: none}}
"""  # only the base is made, but a recipe has stages
MODELS = {"smollm2": f"model: {GGUF}{NEVER}", "tiny": "extends: quickstart\n"}


def main() -> int:
    options = _options()
    if options.case:
        return _measure(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        cases = {name: CASES[name] for name in CASES if CASES[name]["model"] in options.models}
        paths = {name: _base(folder, name) for name in dict.fromkeys(case["model"] for case in cases.values())}
        results = {name: _compare(name, paths[case["model"]], options) for name, case in cases.items()}
    made = {"pairs": options.pairs, "steps": options.steps, "cases": results}
    print(record.write("gradient_checkpointing", made, options.out))
    return 0


def _base(folder: Path, name: str) -> Path:
    """Make the base model of a recipe, and return its folder."""
    import posttrain_plugins as pp

    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(f"name: {name}\nseed: 0\n{MODELS[name]}", encoding="utf-8")
    found = pp.run(recipe, runs_dir=folder / "runs", until="base")["base"].model_path
    assert found is not None
    return Path(found)


def _compare(name: str, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    taken: list[dict[str, dict[str, float]]] = []
    for number in range(options.pairs):
        order = (True, False) if number % 2 else (False, True)
        pair = {("with" if is_on else "without"): _call(name, model, is_on, options.steps) for is_on in order}
        print(f"{name}, pair {number + 1}: {json.dumps(pair)}", file=sys.stderr)
        taken.append(pair)
    return {
        **{key: value for key, value in CASES[name].items() if key != "model"},
        "time_ratio": record.median_interval([pair["with"]["cpu_s"] / pair["without"]["cpu_s"] for pair in taken]),
        "saved_mib": record.median_interval([pair["without"]["rise_mib"] - pair["with"]["rise_mib"] for pair in taken]),
        "peak_mib": {side: record.median_interval([pair[side]["peak_mib"] for pair in taken]) for side in taken[0]},
        "pairs": taken,
    }


def _call(name: str, model: Path, is_on: bool, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", name, "--folder", str(model), "--steps", str(steps)]
    command += ["--on"] if is_on else []
    done = subprocess.run(command, env={**os.environ, **GIVES_BACK}, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(options: argparse.Namespace) -> int:
    """Train in this process and print what the steps after the first took, as JSON."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    case = CASES[options.case]
    vocabulary = json.loads((options.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    torch.manual_seed(0)
    ids = torch.randint(vocabulary, (case["rows"] * (options.steps + 1), case["tokens"])).tolist()
    seen: dict[str, float] = {}

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Notes what stands after the first step, and at the end."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                forget_peak()
                seen.update(cpu_s=-time.process_time(), before_mib=peak_mib())
            elif state.global_step == args.max_steps:
                seen["cpu_s"] += time.process_time()
                seen["peak_mib"] = peak_mib()

    args = SFTConfig(
        tempfile.mkdtemp(), max_steps=options.steps + 1, per_device_train_batch_size=case["rows"], max_length=None,
        gradient_checkpointing=options.on, save_strategy="no", bf16=False, use_cpu=True, report_to=[], seed=0,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        str(options.folder), args, train_dataset=Dataset.from_dict({"input_ids": ids}), callbacks=[Watch()],
        peft_config=LoraConfig(r=16, target_modules="all-linear") if case["lora"] else None,
    )  # fmt: skip
    trainer.train()
    found = {"cpu_s": seen["cpu_s"] / options.steps, "peak_mib": seen["peak_mib"]}
    print(json.dumps({**found, "rise_mib": seen["peak_mib"] - seen["before_mib"]}))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="that are measured, in each process")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--folder", type=Path, help="where the base models stand; by default they are removed")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="where the results file goes")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--on", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
