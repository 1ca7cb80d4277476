"""GRPO on a real chat model beside plain TRL: the same losses and weights to the last bit, seconds and peak memory.

Both sides train a LoRA adapter on SmolLM2-135M-Instruct on `recipes/real`'s sorting task. Each side of a pair is a
process of its own; which goes first alternates from pair to pair. Taken inside of `GRPOTrainer.train`, on both sides by
the same lines: seconds and CPU seconds of the steps after the first, the highest resident memory from the start of the
training, each step's loss, norm of the gradient and reward, and at the end a digest of the trained weights. The whole
is what the process takes from its first line to the saved model, imports, checks, hashes and the store in it.

    python benchmarks/grpo_real.py --pairs 5
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
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
from gradient_checkpointing import _base
from ppo_memory import GIVES_BACK, forget_peak, peak_mib

ROOT = Path(__file__).resolve().parent.parent
SORTING = ROOT / "recipes" / "real" / "sorting.py"
SEED = 0
ARGS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_generations": 8,
    "max_completion_length": 14,
    "learning_rate": 3e-4,
    "logging_steps": 1,
    "gradient_checkpointing": False,
}
LORA = {"r": 16, "lora_alpha": 32}
SIDES = ("recipe", "plain")
COMPARED = ("loss", "grad_norm", "reward", "reward_std", "entropy")


def main() -> int:
    options = _options()
    if options.side:
        return _measure(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        model = _base(folder, "smollm2")
        pairs = [_pair(number, model, folder, options.steps) for number in range(options.pairs)]
    results = {"steps": options.steps, "args": ARGS, "is_equal": _is_equal(pairs), **_ratios(pairs), "pairs": pairs}
    print(record.write("grpo_real", results, options.out))
    return 0 if results["is_equal"] else 1


def _pair(number: int, model: Path, folder: Path, steps: int) -> dict[str, Any]:
    order = SIDES if number % 2 else SIDES[::-1]
    pair = {side: _call(side, model, folder / f"{number}-{side}", steps) for side in order}
    brief = {side: {what: round(pair[side][what], 2) for what in ("train_s", "whole_s", "peak_gib")} for side in SIDES}
    print(f"pair {number + 1}: {json.dumps(brief)}, equal: {_is_equal([pair])}", file=sys.stderr)
    return pair


def _is_equal(pairs: list[dict[str, Any]]) -> bool:
    """Whether all runs of both sides went through the same figures to the same weights."""
    ends = {json.dumps([pair[side]["log"], pair[side]["weights"]]) for pair in pairs for side in SIDES}
    return len(ends) == 1


def _ratios(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    taken = ("train_s", "train_cpu_s", "whole_s", "peak_gib")
    ratio = {what: [pair["recipe"][what] / pair["plain"][what] for pair in pairs] for what in taken}
    sides = {side: {what: [pair[side][what] for pair in pairs] for what in taken} for side in SIDES}
    return {
        "ratio": {what: record.median_interval(values) for what, values in ratio.items()},
        "sides": {
            side: {what: record.median_interval(values) for what, values in of.items()} for side, of in sides.items()
        },
    }


def _call(side: str, model: Path, out: Path, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--folder", str(model), "--runs", str(out)]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--steps", str(steps)],
        env={**os.environ, **GIVES_BACK},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "whole_s": time.perf_counter() - began}


def _measure(options: argparse.Namespace) -> int:
    """Train in this process and print what it took, as JSON."""
    from trl import GRPOTrainer

    seen: dict[str, Any] = {}
    inner = GRPOTrainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(_clock(seen))
        forget_peak()  # of loading
        done = inner(self, *args, **kwargs)
        seen["peak_gib"] = peak_mib() / 1024
        history = [row for row in self.state.log_history if "loss" in row]
        seen["log"] = [{name: row[name] for name in COMPARED if name in row} for row in history]
        seen["weights"] = _digest(self.model)
        return done

    GRPOTrainer.train = train
    given = {**ARGS, "max_steps": options.steps + 1}
    (run_recipe if options.side == "recipe" else run_plain)(options.folder, options.runs, given)
    print(json.dumps(seen))
    return 0


def _clock(seen: dict[str, Any]) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Counts from the end of the first step, which warms up, to the end of the last."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                seen.update(train_s=-time.perf_counter(), train_cpu_s=-time.process_time())
            elif state.global_step == args.max_steps:
                seen["train_s"] += time.perf_counter()
                seen["train_cpu_s"] += time.process_time()

    return Clock()


def _digest(model: Any) -> str:
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            found.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def run_recipe(model: Path, out: Path, args: dict[str, Any]) -> None:
    """One stage of a recipe."""
    from posttrain_plugins import run

    recipe = {
        "name": "grpo-real",
        "seed": SEED,
        "model": str(model),
        "adapters": {"policy": {"use": "lora", **LORA}},
        "datasets": {"problems": {"use": f"{SORTING}:Sorting", "split": "train", "size": 64}},
        "rewards": {"places": {"use": f"{SORTING}:InOrder", "mode": "share"}},
        "stages": {"grpo": {"use": "grpo", "model": "base", "dataset": "problems", "adapter": "policy",
                            "rewards": ["places"], "args": args}},
    }  # fmt: skip
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run(out / "recipe.yaml", runs_dir=out / "runs")


def run_plain(model: Path, out: Path, args: dict[str, Any]) -> None:
    """The script that a user of TRL would write."""
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    spec = importlib.util.spec_from_file_location("sorting", SORTING)
    assert spec is not None
    assert spec.loader is not None
    sorting = importlib.util.module_from_spec(spec)
    sys.modules["sorting"] = sorting
    spec.loader.exec_module(sorting)
    config = GRPOConfig(
        str(out), **args, seed=SEED, save_strategy="no", bf16=False, dataloader_pin_memory=False, disable_tqdm=True
    )
    trainer = GRPOTrainer(
        model=str(model),
        reward_funcs=sorting.InOrder("share"),
        args=config,
        train_dataset=sorting.Sorting("train", size=64)(),
        peft_config=LoraConfig(**LORA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(out))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="that are measured, in each process")
    parser.add_argument("--folder", type=Path, help="where base model and runs stand; by default they are removed")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="where the results file goes")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
