"""SFT and GRPO at the shape of Qwen3-0.6B, 4-bit with LoRA, on a CUDA GPU: a recipe beside plain TRL.

Nothing is downloaded: the model has the real shape (hidden 1024, 28 layers, 16 heads, 8 key-value heads, vocabulary
151,936) and random weights, the tokenizer is the tiny world's. Random weights hardly ever end a completion, so every
one has its full length. Each of the four runs has a process of its own, so that memory peaks do not mix.

    python benchmarks/gpu/run.py          # refuses (exit 2) where there is no CUDA
    python benchmarks/gpu/run.py --tiny   # the same code with a toy shape, on a CPU too; its figures mean nothing
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import record

RECIPE = Path(__file__).with_name("qwen3_0.6b.yaml")
METHODS = ("sft", "grpo")
SIDES = ("recipe", "plain")
SEED = 0
SHAPE = {  # https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
}
TINY_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 512,
}
TINY_STEPS = 2
TINY_ARGS = {
    "sft": {"per_device_train_batch_size": 4},
    "grpo": {"per_device_train_batch_size": 8, "max_completion_length": 16},
}

Figures = dict[str, Any]


def main() -> int:
    options = _options()
    if options.one:
        method, side = options.one
        print(json.dumps(measure(method, side, options.work_dir, _overrides(options)[method])))
        return 0
    refusal = None if options.tiny else why_not()
    if refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        work = options.work_dir or Path(scratch)
        make_model(work / "model", TINY_SHAPE if options.tiny else SHAPE)
        methods = {method: {side: _in_own_process(method, side, work, options) for side in SIDES} for method in METHODS}
    shape = TINY_SHAPE if options.tiny else SHAPE
    name = "gpu_tiny" if options.tiny else "gpu_qwen3_0.6b"
    print(record.write(name, {"shape": shape, "methods": methods}, options.out or _default_out(options.tiny)))
    return 0


def why_not() -> str | None:
    """Why this machine cannot run it, what it needs, and what to do; None where it can."""
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        return (
            "no CUDA GPU: torch.cuda.is_available() is False "
            f"(torch {torch.__version__}); it needs one with 16 GiB or more and a CUDA build of torch\n\n"
            "hint: python benchmarks/gpu/run.py --tiny runs the same code on a CPU"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        return "4-bit needs bitsandbytes\n\nhint: pip install 'posttrain-plugins[quant]'"
    return None


def make_model(folder: Path, shape: Mapping[str, int]) -> None:
    """A Qwen3 with random weights in bfloat16; the embedding has the shape's size, whatever the tokenizer's."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    words = tokenizer()
    set_seed(SEED)
    config = Qwen3Config(
        **shape,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(str(folder))
    words.save_pretrained(str(folder))


def measure(method: str, side: str, work: Path, overrides: list[str]) -> Figures:
    """One run in this process: tokens per second, the median step without the first, and the peak of GPU memory."""
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        train = run_recipe if side == "recipe" else run_plain
        rows, ends, train_s = train(method, work, overrides)
    steps = [after - before for before, after in itertools.pairwise(ends)]
    tokens = max(row.get("num_tokens", 0) for row in rows)
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / train_s,
        "step_s": statistics.median(steps),
        "train_s": train_s,
        "whole_s": time.perf_counter() - began,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "steps": len(ends),
        "losses": [row["loss"] for row in rows if "loss" in row],
    }


Trained = tuple[list[dict[str, Any]], list[float], float]
"""Rows of the log, the time at which each step ended, seconds of training."""


def run_recipe(method: str, work: Path, overrides: list[str]) -> Trained:
    from posttrain_plugins import run
    from posttrain_plugins.recipe.run.observer import Observer
    from posttrain_plugins.record.figures import read_figures

    ends: list[float] = []

    class Clock(Observer):
        def progress(self, *args: Any) -> None:
            ends.append(time.perf_counter())

    folder = Path(tempfile.mkdtemp(dir=work))
    artifact = run(RECIPE, overrides, runs_dir=folder, only=[method], observer=Clock())[method]
    rows = [dict(line.figures) for line in read_figures(artifact.folder)]
    return rows, ends, artifact.metrics["train_s"]


def run_plain(method: str, work: Path, overrides: list[str]) -> Trained:
    """The script that a user of TRL would write, with the recipe's own arguments."""
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, ModelConfig, SFTConfig, SFTTrainer, get_quantization_config

    from posttrain_plugins.datasets.digit_chain import DigitChain
    from posttrain_plugins.recipe.read.document import load
    from posttrain_plugins.rewards.exact_answer import ExactAnswer
    from posttrain_plugins.rewards.length import Length

    recipe = load(RECIPE, overrides).data
    args = {**recipe["stages"][method]["args"], "seed": SEED, "save_strategy": "no", "disable_tqdm": True}
    args |= {"output_dir": str(work / "plain"), "model_init_kwargs": {"dtype": "bfloat16"}}
    if not torch.cuda.is_available():
        args |= {"bf16": False, "dataloader_pin_memory": False}
    lora = {k: v for k, v in recipe["adapters"]["policy"].items() if k != "use"}
    given: dict[str, Any] = {
        "model": str(work / "model"),
        "peft_config": LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **lora),
        "quantization_config": get_quantization_config(ModelConfig(load_in_4bit=True, dtype="bfloat16")),
    }
    if method == "sft":
        rows = DigitChain(part="demonstrations", size=4000)()
        trainer = SFTTrainer(args=SFTConfig(**args), train_dataset=rows, **given)
    else:
        rows = DigitChain(size=1000)()
        rewards = [ExactAnswer(), Length(max_chars=0, decay_chars=400)]
        config = GRPOConfig(**args, reward_weights=[1.0, 0.5])
        trainer = GRPOTrainer(args=config, reward_funcs=rewards, train_dataset=rows, **given)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    began = time.perf_counter()
    trainer.train()
    return trainer.state.log_history, ends, time.perf_counter() - began


def _in_own_process(method: str, side: str, work: Path, options: argparse.Namespace) -> Figures:
    words = [sys.executable, __file__, "--one", method, side, "--work-dir", str(work)]
    words += ["--tiny"] if options.tiny else []
    words += ["--steps", str(options.steps)] if options.steps else []
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {method}, {side} failed with exit code {done.returncode}; its messages are above")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    peak = "" if figures["peak_gib"] is None else f", {figures['peak_gib']:.2f} GiB"
    print(
        f"{method}, {side}: {figures['tokens_per_s']:.0f} tokens/s, {figures['step_s']:.3f} s a step{peak}",
        file=sys.stderr,
    )
    return figures


def _overrides(options: argparse.Namespace) -> dict[str, list[str]]:
    """Per method: the model's folder, the steps, and a toy's batch sizes."""
    overrides: dict[str, list[str]] = {}
    for method in METHODS:
        args = {"max_steps": options.steps or (TINY_STEPS if options.tiny else None)}
        args |= {**TINY_ARGS[method], "use_cpu": not _has_cuda()} if options.tiny else {}
        overrides[method] = [f"model.model_name_or_path={options.work_dir / 'model'}"]
        overrides[method] += [f"stages.{method}.args.{k}={json.dumps(v)}" for k, v in args.items() if v is not None]
    return overrides


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _default_out(tiny: bool) -> Path:
    return Path(tempfile.gettempdir()) if tiny else record.RESULTS


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy shape, 2 steps, on a CPU too; writes gpu_tiny.json")
    parser.add_argument("--steps", type=int, help="optimizer steps (the recipe's: 40 for SFT, 20 for GRPO)")
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON (benchmarks/results; the temporary one for --tiny)"
    )
    parser.add_argument("--work-dir", type=Path, help="keeps model and runs there instead of in a temporary folder")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SIDE"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
