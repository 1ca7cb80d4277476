"""What `test_two_processes.py` starts with `torchrun`: stages one after the other in one pair of processes.

    torchrun --nproc_per_node 2 on_two_processes.py MODEL PROBLEMS DEMOS OUT ZERO CASE...

ZERO is 0 for DDP, 2 or 3 for that stage of DeepSpeed. Each process writes `OUT/CASE.RANK.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from posttrain_plugins.stages.grpo import GRPO
from posttrain_plugins.stages.ppo import PPO
from posttrain_plugins.stages.prm import PRM
from posttrain_plugins.stages.sft import SFT
from posttrain_plugins.trainers import training
from posttrain_plugins.types import ModelArtifact, ResolvedAdapter, ResolvedReward, StageContext

SHARED: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": [],
}
PLAIN: dict[str, Any] = {**SHARED, "gradient_checkpointing": False}
SAMPLED: dict[str, Any] = {"max_completion_length": 8, "num_iterations": 2}
ONE: dict[str, Any] = {**PLAIN, **SAMPLED, "kl_target": 0.1}
CHECKPOINTED: dict[str, Any] = {**ONE, "gradient_checkpointing": True}
SAVED: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
GROUPED: dict[str, Any] = {"advantage_estimator": "reinforce_pp_baseline", "num_generations": 2}

STEPS: dict[str, Any] = {**PLAIN, "step_separator": ";", "optim": "sgd", "max_grad_norm": 0.0}

CASES: dict[str, tuple[type, bool, dict[str, Any]]] = {  # the stage, is there an adapter, its args
    "sft": (SFT, False, PLAIN),
    "prm": (PRM, False, {**STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "prm_alone": (PRM, False, {**STEPS, "per_device_train_batch_size": 8}),  # the same rows in one process
    "grpo": (GRPO, True, {**PLAIN, **SAMPLED, "num_generations": 4, "beta": 0.05}),
    "grpo_fast": (GRPO, True, {**PLAIN, **SAMPLED, "num_generations": 4, "beta": 0.05}),
    "adapter_fast": (PPO, True, {**ONE, "critic": "adapter", "num_generations": 4}),
    "adapter": (PPO, True, {**ONE, "critic": "adapter", "gradient_accumulation_steps": 2}),
    "adapter_checkpointed": (PPO, True, {**CHECKPOINTED, "critic": "adapter", "gradient_accumulation_steps": 2}),
    "shared": (PPO, True, {**ONE, "critic": "shared"}),
    "shared_checkpointed": (PPO, True, {**CHECKPOINTED, "critic": "shared"}),
    "separate": (PPO, False, {**ONE, "critic": "separate"}),
    "separate_checkpointed": (PPO, False, {**CHECKPOINTED, "critic": "separate"}),
    "adapter_resumed": (PPO, True, {**ONE, **SAVED, "critic": "adapter"}),
    "remax": (PPO, True, {**ONE, "advantage_estimator": "remax"}),
    "reinforce_pp_baseline": (PPO, True, {**ONE, **GROUPED}),
}


def uneven_steps() -> Any:
    """Stepwise data of one to four steps a row, so that processes and micro-batches end a different number of them."""
    from datasets import Dataset

    counts = [1, 2, 3, 4, 4, 1, 2, 2] * 2
    rows = [
        {"prompt": f"{i}:", "completions": [f"{i % 10};"] * n, "labels": [bool(i % 3)] * n}
        for i, n in enumerate(counts)
    ]
    return Dataset.from_list(rows)


def digits(completions: list[Any], **columns: Any) -> list[float]:
    return [sum(x.isdigit() for x in c[0]["content"]) / 8 for c in completions]


class Quiet:
    """A reporter that says nothing."""

    def progress(self, *args: Any) -> None: ...
    def note(self, message: str) -> None: ...


class Spy:
    """Sees the trainer that a stage builds, and each gradient before and after DDP's reduction."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.buckets: list[tuple[Any, Any]] = []
        self.follow = training.follow
        training.follow = self.noted  # type: ignore[assignment]

    def noted(self, context: Any, trainer: Any) -> Any:
        from transformers import TrainerCallback

        spy = self

        class Register(TrainerCallback):  # type: ignore[misc]
            """When the model is wrapped."""

            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                if hasattr(trainer.model_wrapped, "register_comm_hook"):
                    hook = lambda state, bucket: spy.reduced(bucket)  # noqa: E731 (torch reads a function's annotations)
                    trainer.model_wrapped.register_comm_hook(None, hook)

        self.trainer, self.buckets = trainer, []
        trainer.add_callback(Register())
        return self.follow(context, trainer)

    def reduced(self, bucket: Any) -> Any:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        local = bucket.buffer().clone()

        def note(future: Any) -> Any:
            self.buckets.append((local, future.value().clone()))
            return future.value()

        return allreduce_hook(dist.group.WORLD, bucket).then(note)

    def averaged(self) -> dict[str, bool]:
        """Are gradients the mean of what the processes found, and did these find different ones?"""
        if not self.buckets:
            return {"averaged": False, "differed": False}
        local, reduced = (torch.cat([pair[i].flatten() for pair in self.buckets]) for i in (0, 1))
        everyone = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, local)
        mean = torch.stack(everyone).mean(0)
        differed = not torch.allclose(everyone[0], everyone[1])
        return {"averaged": torch.allclose(mean, reduced, atol=1e-6), "differed": differed}


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """Whole, also where ZeRO-3 has them in pieces."""
    named = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    if not any(hasattr(p, "ds_id") for p in named.values()):
        return {name: p.detach().clone() for name, p in named.items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(named.values())):
        return {name: p.detach().clone() for name, p in named.items()}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(t.float().numpy().tobytes() for t in tensors.values())).hexdigest()


def zero_config(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
    }


def call(case: str, model: str, data: dict[str, Any], out: Path, zero: int, checkpoint: Path | None = None) -> Any:
    """One stage, as a run calls it."""
    from peft import LoraConfig

    stage, has_adapter, args = CASES[case]
    if zero:
        args = {**args, "deepspeed": zero_config(zero)}
    lora = LoraConfig(r=4, target_modules="all-linear") if has_adapter else None
    inputs: dict[str, Any] = {
        "model": ModelArtifact("base", model),
        "dataset": uneven_steps() if stage is PRM else data["demos" if stage is SFT else "problems"],
        "rewards": [ResolvedReward("digits", digits)],
        "adapter": ResolvedAdapter("policy", lora),
    }
    folder = out / case
    folder.mkdir(parents=True, exist_ok=True)
    context = StageContext(case, folder, 5, inputs, checkpoint, Quiet(), lambda: False, args)
    rewards = {} if stage in (SFT, PRM) else {"rewards": ["digits"]}
    fast = {"share_prompts": True, "rollouts": "engine"} if case.endswith("_fast") else {}
    return stage(model="base", dataset="data", args=args, **rewards, **fast)(context)


def main() -> None:
    from datasets import load_dataset

    model, problems, demos, out, zero, *cases = sys.argv[1:]
    warnings.simplefilter("ignore")
    if int(zero):
        import deepspeed

        deepspeed.init_distributed("gloo")
    data = {
        name: load_dataset("json", data_files=file, split="train")
        for name, file in {"problems": problems, "demos": demos}.items()
    }
    spy = Spy()
    for case in cases:
        call(case, model, data, Path(out), int(zero))
        found = parameters(spy.trainer)
        whole = digest(found)
        if case.endswith("_resumed"):
            call(case, model, data, Path(out), int(zero), Path(out) / case / "checkpoints/checkpoint-2")
            found = parameters(spy.trainer)
        moved = [name for name, p in found.items() if "value_head" in name and p.any()]
        kl_coef = getattr(spy.trainer, "kl_coef", None)
        told = {"digest": digest(found), "whole": whole, "world_size": dist.get_world_size(), "has_critic": bool(moved)}
        told |= {"kl_coef": kl_coef, **(spy.averaged() if not int(zero) else {})}
        told["losses"] = [row["loss"] for row in spy.trainer.state.log_history if "loss" in row]
        (Path(out) / f"{case}.{os.environ['RANK']}.json").write_text(json.dumps(told), encoding="utf-8")
    dist.destroy_process_group()
    # As a launch's worker ends: Gloo's threads live as long as a trainer holds the group, and one that lets go of a
    # tensor while the interpreter is torn down aborts the process (github.com/pytorch/pytorch/issues/190489).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
