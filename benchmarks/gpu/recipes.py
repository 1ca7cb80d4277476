"""What each stage of the packaged GPU recipes costs: tokens/s, step time, peak GiB, in 4 bits with LoRA, on a CUDA GPU.

Nothing is downloaded: the recipes make random weights in the shapes of Qwen3-0.6B, 1.7B and 8B. Random weights hardly
ever end a completion, so every one has its full length. Each stage has a process of its own, so that memory peaks do
not mix.

    python benchmarks/gpu/recipes.py              # all three; refuses (exit 2) where there is no CUDA
    python benchmarks/gpu/recipes.py qlora_8b     # one
    python benchmarks/gpu/recipes.py --tiny       # the same code with a toy shape, on a CPU; its figures mean nothing
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import record
import run as shapes

NAMES = ("qlora_0.6b", "qlora_1.7b", "qlora_8b")
STAGES = ("sft", "rm", "dpo", "grpo", "ppo")
TINY_ARGS = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 16}
ROLLOUTS = ("grpo", "ppo")

Figures = dict[str, Any]


def main() -> int:
    options = _options()
    if options.one:
        print(json.dumps(measure(options.names[0], options.one, options.work_dir, options.tiny, options.steps)))
        return 0
    refusal = None if options.tiny else shapes.why_not()
    if refusal:
        print(f"error: {refusal.replace('run.py', 'recipes.py')}", file=sys.stderr)
        return 2
    for name in options.names[:1] if options.tiny else options.names:
        with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
            work = options.work_dir or Path(scratch)
            stages = {stage: _measured(name, stage, work, options) for stage in ("base", *STAGES)}
        results = {"recipe": f"gpu/{name}", "stages": {stage: stages[stage] for stage in STAGES}}
        out = options.out or (Path(tempfile.gettempdir()) if options.tiny else record.RESULTS)
        print(record.write("gpu_recipes_tiny" if options.tiny else f"gpu_{name}", results, out))
    return 0


def measure(name: str, stage: str, work: Path, is_tiny: bool, steps: int | None) -> Figures:
    """One stage in this process: tokens per second, the median step without the first, and the peak of GPU memory."""
    import torch

    from posttrain_plugins.api import run
    from posttrain_plugins.recipe.run.observer import Observer
    from posttrain_plugins.record.figures import read_figures

    ends: list[float] = []

    class Clock(Observer):
        def progress(self, *args: Any) -> None:
            ends.append(time.perf_counter())

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.redirect_stdout(sys.stderr):
        chosen = _overrides(is_tiny, steps)
        artifact = run(f"gpu/{name}", chosen, runs_dir=work, only=[stage], observer=Clock())[stage]
    if stage == "base":
        return {}
    rows = [line.figures for line in read_figures(artifact.folder)]
    tokens = max(row.get("num_tokens", 0) for row in rows)
    train_s = artifact.metrics["train_s"]
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / train_s,
        "step_s": statistics.median(after - before for before, after in itertools.pairwise(ends)),
        "train_s": train_s,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "steps": len(ends),
        "losses": [row["loss"] for row in rows if "loss" in row],
    }


def _overrides(is_tiny: bool, steps: int | None) -> dict[str, Any]:
    """The number of steps; for a toy its shape, its batch sizes and the CPU."""
    import torch

    count = steps or (shapes.TINY_STEPS if is_tiny else None)
    chosen: dict[str, Any] = {f"stages.{stage}.args.max_steps": count for stage in STAGES if count}
    if not is_tiny:
        return chosen
    chosen |= {f"model.config.{name}": value for name, value in shapes.TINY_SHAPE.items()}
    for stage in STAGES:
        args = TINY_ARGS if stage == "grpo" else {k: v for k, v in TINY_ARGS.items() if k != "num_generations"}
        args = args if stage in ROLLOUTS else {"per_device_train_batch_size": 4}
        args = {**args, **({} if torch.cuda.is_available() else {"use_cpu": True})}
        chosen |= {f"stages.{stage}.args.{name}": value for name, value in args.items()}
    return chosen


def _measured(name: str, stage: str, work: Path, options: argparse.Namespace) -> Figures:
    """In a process of its own; a toy's peaks mean nothing."""
    if options.tiny:
        return measure(name, stage, work, True, options.steps)
    words = [sys.executable, __file__, name, "--one", stage, "--work-dir", str(work)]
    words += ["--tiny"] if options.tiny else []
    words += ["--steps", str(options.steps)] if options.steps else []
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {name}, {stage} failed with exit code {done.returncode}; its messages are above")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    if figures:
        peak = "" if figures["peak_gib"] is None else f", {figures['peak_gib']:.2f} GiB"
        cost = f"{figures['tokens_per_s']:.0f} tokens/s, {figures['step_s']:.3f} s a step{peak}"
        print(f"{name}, {stage}: {cost}", file=sys.stderr)
    return figures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=NAMES, choices=[*NAMES, NAMES], metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument("--tiny", action="store_true", help="toy shape, 2 steps; writes gpu_recipes_tiny.json")
    parser.add_argument(
        "--steps", type=int, help="optimizer steps of each stage (the recipe's: 40 for SFT, 20 for others)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON (benchmarks/results; the temporary one for --tiny)"
    )
    parser.add_argument("--work-dir", type=Path, help="keeps model and runs there instead of in a temporary folder")
    parser.add_argument("--one", metavar="STAGE", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
