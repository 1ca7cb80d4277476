"""What a recipe costs over plain TRL, in time: the same stage, the same numbers, measured in interleaved pairs.

Each pair runs a recipe stage and the plain TRL script that gives the same weights, in one process after a discarded
warm-up pair, so that neither side pays for imports; which of the two goes first alternates from pair to pair. Taken are
`train`, around `trainer.train()` alone; `whole`, from the recipe file (or the script's first line) to the saved model,
so that checking, hashing and publishing are in it; and `whole_cpu`, the same in CPU time, which a busy machine disturbs
less.

    python benchmarks/overhead.py --pairs 9
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record

METHODS = ("sft", "reward", "dpo", "grpo", "rloo")
REINFORCE = ("grpo", "rloo")
DATA = {"sft": "demos", "reward": "pairs", "dpo": "pairs", "grpo": "problems", "rloo": "problems"}
SEED = 0
SUPERVISED = {"per_device_train_batch_size": 32, "learning_rate": 1e-3, "max_length": 80}
SAMPLED = {
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": 48,
    "learning_rate": 2e-4,
    "reward_weights": [1.0, 0.5],
}
ARGS: dict[str, dict[str, Any]] = {method: SAMPLED if method in REINFORCE else SUPERVISED for method in METHODS}
SHARED = {"logging_steps": 10, "gradient_checkpointing": False}

RECIPE = """
name: overhead
seed: {seed}
model: {model}
datasets:
  demos: {path: "{folder}/demos.jsonl"}
  pairs: {path: "{folder}/pairs.jsonl"}
  problems: {path: "{folder}/problems.jsonl"}
rewards:
  correct: digit_chain_steps
  brief: {use: length, max_chars: 60, weight: 0.5}
stages:
  sft: {use: sft, model: base, dataset: demos, args: {sft}}
  reward: {use: reward, model: base, dataset: pairs, args: {reward}}
  dpo: {use: dpo, model: base, dataset: pairs, args: {dpo}}
  grpo: {use: grpo, model: base, dataset: problems, rewards: [correct, brief], args: {grpo}}
  rloo: {use: rloo, model: base, dataset: problems, rewards: [correct, brief], args: {rloo}}
"""

Times = dict[str, float]


def main() -> int:
    options = _options()
    print(f"load average {os.getloadavg()[0]:.2f}; quiet is below 0.5", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        model = prepare(folder)
        results = {method: compare(method, folder, model, options.pairs, options.steps) for method in options.methods}
    file = record.write("overhead", {"pairs": options.pairs, "steps": options.steps, "methods": results}, options.out)
    print(file)
    return 0


def compare(method: str, folder: Path, model: Path, pairs: int, steps: int) -> dict[str, Any]:
    """Interleaved pairs of one method: both sides' times, and the ratios recipe / plain with their intervals."""
    sides: dict[str, Callable[[Path], Times]] = {
        "recipe": lambda out: run_recipe(method, folder, model, steps, out),
        "plain": lambda out: run_plain(method, folder, model, steps, out),
    }
    taken: list[dict[str, Times]] = []
    for number in range(pairs + 1):  # the first is the warm-up
        order = ["recipe", "plain"] if number % 2 else ["plain", "recipe"]
        pair = {side: _quietly(sides[side], folder / f"{method}-{number}-{side}") for side in order}
        ratio = pair["recipe"]["train"] / pair["plain"]["train"]
        label = f"pair {number}/{pairs}" if number else "warm-up"
        print(f"{method} {label}: train {ratio:.3f} x plain TRL", file=sys.stderr)
        taken.append(pair)
    taken = taken[1:]
    ratios = {what: [p["recipe"][what] / p["plain"][what] for p in taken] for what in ("train", "whole", "whole_cpu")}
    extra = [p["recipe"]["whole"] - p["plain"]["whole"] for p in taken]
    return {
        "ratio": {what: record.median_interval(values) for what, values in ratios.items()},
        "extra_whole_s": record.median_interval(extra),
        "times_s": taken,
    }


def run_recipe(method: str, folder: Path, model: Path, steps: int, out: Path) -> Times:
    from posttrain_plugins import run

    began, began_cpu = time.perf_counter(), time.process_time()
    finished = run(_recipe(folder, model, steps), runs_dir=out, only=[method])
    whole, whole_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return {"train": finished[method].metrics["train_s"], "whole": whole, "whole_cpu": whole_cpu}


def run_plain(method: str, folder: Path, model: Path, steps: int, out: Path) -> Times:
    """The script that a user of TRL would write."""
    import trl
    from datasets import load_dataset

    from posttrain_plugins.rewards.digit_chain_steps import DigitChainSteps
    from posttrain_plugins.rewards.length import Length

    began, began_cpu = time.perf_counter(), time.process_time()
    rows = load_dataset("json", data_files=str(folder / f"{DATA[method]}.jsonl"), split="train")
    given = {**SHARED, **ARGS[method], "max_steps": steps, "seed": SEED, "output_dir": str(out), "save_strategy": "no"}
    given |= {"disable_tqdm": True, **_on_cpu()}
    name = {"reward": "Reward"}.get(method, method.upper())
    rewards = {"reward_funcs": [DigitChainSteps(), Length(max_chars=60)]} if method in REINFORCE else {}
    config = getattr(trl, f"{name}Config")(**given)
    trainer = getattr(trl, f"{name}Trainer")(model=str(model), args=config, train_dataset=rows, **rewards)
    train_began = time.perf_counter()
    trainer.train()
    train = time.perf_counter() - train_began
    trainer.save_model(str(out))
    return {"train": train, "whole": time.perf_counter() - began, "whole_cpu": time.process_time() - began_cpu}


def prepare(folder: Path) -> Path:
    """The tiny world's model with random weights, and its data as files."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    from posttrain_plugins.datasets.digit_chain import DigitChain
    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    for name, part in {"demos": "demonstrations", "problems": "problems"}.items():
        DigitChain(part=part, size=2000)().to_json(folder / f"{name}.jsonl")  # type: ignore[arg-type]
    demos = DigitChain(part="demonstrations", size=2000)()
    rejected = [*demos["completion"][1:], demos["completion"][0]]
    pairs = demos.rename_column("completion", "chosen").add_column("rejected", rejected)
    pairs.to_json(folder / "pairs.jsonl")
    words = tokenizer()
    set_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(str(folder / "model"))
    words.save_pretrained(str(folder / "model"))
    return folder / "model"


def _recipe(folder: Path, model: Path, steps: int) -> Path:
    text = RECIPE.replace("{seed}", str(SEED)).replace("{model}", str(model)).replace("{folder}", str(folder))
    for method in METHODS:
        args = {k: v for k, v in ARGS[method].items() if k != "reward_weights"}  # the recipe's `weight` gives them
        text = text.replace("{" + method + "}", json.dumps({**SHARED, **args, "max_steps": steps}))
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def _on_cpu() -> dict[str, Any]:
    import torch

    return {} if torch.accelerator.is_available() else {"bf16": False, "dataloader_pin_memory": False}


def _quietly(side: Callable[[Path], Times], out: Path) -> Times:
    """Runs one side with the trainers' prints sent away, after the other side's garbage is gone."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    gc.collect()
    with Path(os.devnull).open("w") as away, contextlib.redirect_stdout(away):
        return side(out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="measured pairs per method, at least 5 for a result (9)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps per run (60)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which (all)")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of overhead.json (benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
