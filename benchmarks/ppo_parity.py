"""Our PPO beside the last one that TRL had: 1.12's `trl.experimental.ppo`, on one task, with the same settings.

Both train a LoRA policy from the same SFT model of the tiny world against the same checker, one completion per prompt
and without clipping of gradients, which 1.12 does not have. What must hold, else exit 1:

1. learning: the difference in mean reward over the last third of the steps: its 95 % interval over the seeds (Welch's
   t, for the two draw from different streams of noise) holds 0 or is above it. That over all steps stands beside it;
2. memory: with a reward model that is an adapter, ours holds at most half of 1.12's parameters;
3. optimizer: at most 0.15 of its numbers;
4. formulas: on the same tensors (`ppo_tensors.py`) advantages, returns and loss differ by at most 1e-6.

TRL 1.12 lives in a virtual environment of its own, with the same torch, transformers and peft:

    python -m venv old && old/bin/pip install trl==1.12 transformers==5.23 peft==0.21.2 torch
    python benchmarks/ppo_parity.py --old-python old/bin/python --model runs/quickstart/latest/sft/model
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads wait for each other on a busy machine

ROOT = Path(__file__).resolve().parent.parent
MEMORY, OPTIMIZER, FORMULAS = 0.5, 0.15, 1e-6
RANK = 4
MAX_TOKENS = 48
SHARED = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "linear",
    "kl_coef": 0.01,
    "vf_coef": 0.1,
    "gamma": 1.0,
    "lam": 0.95,
    "temperature": 1.0,
    "max_grad_norm": 0.0,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "report_to": [],
    "logging_steps": 1,
    "save_strategy": "no",
}


def main() -> int:
    options = _options()
    if options.worker:
        warnings.simplefilter("ignore")
        measured = {"old": old, "new": new}[options.worker](options)
        print("\n" + json.dumps(measured))
        return 0
    import record

    with tempfile.TemporaryDirectory() as folder:
        judge(options.model, folder)
        sides = {"old": options.old_python, "new": sys.executable}
        runs = {
            side: {str(seed): call(python, side, seed, folder, options) for seed in options.seeds}
            for side, python in sides.items()
        }
    results = {"model": options.model.name, "steps": options.steps, "batch": options.batch, "settings": SHARED}
    results |= {"runs": runs, **compare(runs), "formulas": tensors(options.old_python)}
    results["missed"] = unmet(results)
    print(record.write("ppo_parity", results, options.out), file=sys.stderr)
    print(
        json.dumps(
            {key: results[key] for key in ("learning", "parameters", "optimizer", "formulas", "missed")}, indent=1
        )
    )
    return 1 if results["missed"] else 0


def call(python: str, side: str, seed: int, judge_folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """One training run of one side, in a process of its own."""
    words = ["--worker", side, "--seeds", str(seed), "--steps", str(options.steps), "--batch", str(options.batch)]
    given = [*words, "--model", str(options.model), "--judge", judge_folder]
    measured = told_by([python, str(Path(__file__)), *given])
    last = mean_of_last_third(measured["rewards"])
    print(f"{side}, seed {seed}: {last:.3f} in {measured['train_s']:.0f} s", file=sys.stderr, flush=True)
    return measured


def tensors(old_python: str) -> dict[str, Any]:
    """The largest differences between our formulas and 1.12's on the same tensors."""
    return told_by([old_python, str(Path(__file__).with_name("ppo_tensors.py"))])


def told_by(command: list[str]) -> dict[str, Any]:
    """What a process prints last, as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def compare(runs: dict[str, Any]) -> dict[str, Any]:
    """What the claims are about, from the runs of both sides."""
    lasts = {side: {s: mean_of_last_third(run["rewards"]) for s, run in of.items()} for side, of in runs.items()}
    whole = {side: {s: statistics.fmean(run["rewards"]) for s, run in of.items()} for side, of in runs.items()}
    some = {side: next(iter(of.values())) for side, of in runs.items()}
    learning: dict[str, Any] = {"last_third": lasts, "all_steps": whole}
    learning["difference"] = difference(lasts)
    learning["difference_over_all_steps"] = difference(whole)
    learning["first"] = {side: {s: run["rewards"][0] for s, run in of.items()} for side, of in runs.items()}
    ratios = {
        name: {**{side: some[side][name] for side in some}, "ratio": some["new"][name] / some["old"][name]}
        for name in ("parameters", "optimizer")
    }
    return {"learning": learning, **ratios, "versions": {side: some[side]["versions"] for side in some}}


def difference(means: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Ours less theirs over the seeds, with Welch's 95 % interval; none from a single seed."""
    from scipy.stats import ttest_ind

    ours, theirs = (list(means[side].values()) for side in ("new", "old"))
    found: dict[str, float | None] = {"mean": statistics.fmean(ours) - statistics.fmean(theirs)}
    if min(len(ours), len(theirs)) < 2:
        return {**found, "low": None, "high": None}
    interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    return {**found, "low": float(interval.low), "high": float(interval.high)}


def unmet(results: dict[str, Any]) -> list[str]:
    """What the results miss of what must hold."""
    missed = []
    high = results["learning"]["difference"]["high"]
    if high is not None and high < 0:
        missed.append(f"learning: ours is below 1.12's, difference {results['learning']['difference']}")
    for name, limit in (("parameters", MEMORY), ("optimizer", OPTIMIZER)):
        if results[name]["ratio"] > limit:
            missed.append(f"{name}: {results[name]['ratio']:.3f} of 1.12's, expected at most {limit}")
    for name, difference in results["formulas"].items():
        if difference > FORMULAS:
            missed.append(f"formulas: {name} differ by {difference:.1e}, expected at most {FORMULAS}")
    return missed


def mean_of_last_third(rewards: list[float]) -> float:
    last = rewards[-max(1, len(rewards) // 3) :]
    return sum(last) / len(last)


# --- the task, for both sides ----------------------------------------------------------------------------------------


def problems(count: int) -> Any:
    from posttrain_plugins.datasets.digit_chain import DigitChain

    return DigitChain(size=count, seed=3)()


def score(prompts: list[str], completions: list[str]) -> list[float]:
    """1 for answer and every step, and the share of right steps."""
    from posttrain_plugins.rewards.digit_chain_steps import DigitChainSteps

    strict, share = DigitChainSteps(), DigitChainSteps(mode="fraction")
    pairs = zip(strict(prompts, completions), share(prompts, completions), strict=True)
    return [float(a or 0.0) + float(b or 0.0) for a, b in pairs]


def lora(task_type: str = "CAUSAL_LM", **options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type=task_type, **options)


def judge(model: Path, folder: str) -> None:
    """A reward model for the count of parameters: an adapter on the same base, untrained."""
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(str(model), num_labels=1, dtype="float32")
    get_peft_model(base, lora("SEQ_CLS", modules_to_save=["score"])).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(model)).save_pretrained(folder)


def held(*models: Any) -> int:
    """Numbers in distinct tensors."""
    return sum({p.data_ptr(): p.numel() for model in models if model is not None for p in model.parameters()}.values())


def optimized(optimizer: Any) -> int:
    """Numbers that Adam keeps: two for each parameter."""
    return 2 * sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("trl", "transformers", "peft", "torch")}


# --- TRL 1.12 --------------------------------------------------------------------------------------------------------


def old(options: argparse.Namespace) -> dict[str, Any]:
    """`trl.experimental.ppo.PPOTrainer` as its own example has it: policy with LoRA, value model, reward model."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    path, seed = str(options.model), options.seeds[0]
    words = AutoTokenizer.from_pretrained(path, padding_side="left")
    rows = problems(options.batch * options.steps)
    ids = [words.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"] for row in rows]
    value = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype="float32")
    args = PPOConfig(
        tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch,
        total_episodes=options.batch * options.steps,
        num_ppo_epochs=1,
        response_length=MAX_TOKENS,
        local_rollout_forward_batch_size=options.batch,
        stop_token="eos",
        num_sample_generations=0,
        seed=seed,
        **SHARED,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=words,
        model=AutoModelForCausalLM.from_pretrained(path, dtype="float32"),
        ref_model=None,
        reward_model=checker(words),
        train_dataset=_as_dataset(ids),
        value_model=value,
        peft_config=lora(),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    rewards = [row["objective/scores"] for row in trainer.state.log_history if "objective/scores" in row]
    rm = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype="float32")
    counts = {"parameters": held(trainer.policy_model, value, rm), "optimizer": optimized(trainer.optimizer)}
    return {"rewards": rewards, "train_s": seconds, **counts, "versions": versions()}


def _as_dataset(ids: list[list[int]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": ids})


def checker(words: Any) -> Any:
    """The checker as 1.12 wants a reward model: a body that gives hidden states, and a `score` that reads them."""
    import torch

    class Body(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any, **options: Any) -> Any:
            texts = words.batch_decode(input_ids, skip_special_tokens=False)
            prompts, completions = [], []
            for text in texts:
                head, _, tail = text.rpartition("<|assistant|>")
                prompts.append(head.rpartition("<|user|>")[2].replace(words.eos_token, "").strip())
                completions.append(tail.replace(words.eos_token, "").replace(words.pad_token, ""))
            scores = torch.tensor(score(prompts, completions))
            hidden = scores[:, None, None].expand(*input_ids.shape, 1)
            return argparse.Namespace(hidden_states=[hidden])

    class Checker(torch.nn.Module):
        base_model_prefix = "model"

        def __init__(self) -> None:
            super().__init__()
            self.model = Body()
            self.score = torch.nn.Identity()

    return Checker()


# --- ours ------------------------------------------------------------------------------------------------------------


def new(options: argparse.Namespace) -> dict[str, Any]:
    """`PPOTrainer` with the same policy; its critic is a second adapter."""
    from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer

    def checked(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return score([prompt[-1]["content"] for prompt in prompts], texts)

    def build(rewards: list[Any]) -> Any:
        args = PPOConfig(
            tempfile.mkdtemp(),
            per_device_train_batch_size=options.batch,
            max_steps=options.steps,
            num_iterations=1,
            max_completion_length=MAX_TOKENS,
            seed=options.seeds[0],
            **SHARED,
        )
        rows = problems(options.batch * options.steps)
        return PPOTrainer(str(options.model), rewards, args, rows, peft_config=lora())

    trainer = build([checked])
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    with_judge = build([options.judge])
    counts = {"parameters": held(with_judge.model), "optimizer": optimized(with_judge.create_optimizer())}
    return {"rewards": rewards, "train_s": seconds, **counts, "versions": versions()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "runs/quickstart/latest/sft/model"
    parser.add_argument("--old-python", default="python", help="the interpreter of an environment with trl==1.12")
    parser.add_argument("--model", type=Path, default=default, help="an SFT model of the tiny world")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which seeds (0 1 2)")
    parser.add_argument("--steps", type=int, default=40, help="updates of each run (40)")
    parser.add_argument("--batch", type=int, default=64, help="prompts of each update (64)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of ppo_parity.json")
    parser.add_argument("--worker", choices=("old", "new"), help=argparse.SUPPRESS)
    parser.add_argument("--judge", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
