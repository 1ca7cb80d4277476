"""AdaLoRA in any trainer: `peft.AdaLoraConfig` that calls PEFT's rank allocator (Zhang et al., 2023).

Paper: https://huggingface.co/papers/2303.10512.

1. The schedule of algorithm 1 ends with the stage: `total_step` is the trainer's number of optimizer steps.
2. Until the end the ranks are masked and nothing is cut off, so that a run can go on from a checkpoint: what PEFT cuts
   when it saves would fit neither the optimizer's state nor the modules of the run that goes on. The allocator's
   averages and the mask stand in the checkpoint as `adalora.pt`. At the end the modules are cut as they are saved.
3. PEFT adds the orthogonality penalty (equation 4) to the model's `outputs.loss`, which TRL's trainers do not use; its
   gradient is added here, after the trainer has clipped that of its own loss.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig as PeftAdaLoraConfig
from peft.utils.warning import PeftWarning
from transformers import TrainerCallback

from posttrain_plugins.errors import InputError

__all__ = ["AdaLoraConfig"]

UNKNOWN = 10**9  # PEFT wants a number before the trainer can know it
STATE = "adalora.pt"
AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass
class AdaLoraConfig(PeftAdaLoraConfig):  # type: ignore[misc]
    """A `peft.AdaLoraConfig` whose `total_step` is the trainer's where it is not given."""

    def __post_init__(self) -> None:
        self.total_step: int = self.total_step or UNKNOWN
        super().__post_init__()
        if self.init_r <= self.target_r:
            message = f"init_r is {self.init_r} and target_r {self.target_r}: there is no rank to take away"
            raise InputError(message, hint="set init_r above target_r, or use: lora")

    def prepare(self, trainer: Any) -> None:
        """Let the trainer call the rank allocator after every step; an adapter whose ranks are settled keeps them."""
        model = trainer.model
        # a pattern stands in a config that was saved at the end of a run: its modules are cut, and cannot grow again
        if model.peft_config[model.active_adapter].rank_pattern is None:
            trainer.add_callback(_Allocation(model))
        else:
            model.base_model.set_requires_grad(model.active_adapter)


class _Allocation(TrainerCallback):  # type: ignore[misc]
    """Calls the allocator between the optimizer's step and the loss of its gradients."""

    def __init__(self, model: Any) -> None:
        self.tuner = model.base_model
        self.name = model.active_adapter
        self.config = model.peft_config[self.name]
        self.weight, self.config.orth_reg_weight = self.config.orth_reg_weight, 0.0  # once is enough
        self.pattern: dict[str, list[bool]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Settle the schedule, now that the number of steps is known, and go on from a checkpoint."""
        # a pattern in the config tells PEFT that the modules are cut already, which they are only at the end
        self.config.rank_pattern = None
        if self.config.total_step == UNKNOWN:
            self.config.total_step = state.max_steps
        if self.config.tinit >= self.config.total_step - self.config.tfinal:
            raise InputError(
                f"adalora: tinit={self.config.tinit} and tfinal={self.config.tfinal} leave no step of "
                f"{self.config.total_step} to allocate ranks in",
                hint="lower tinit and tfinal, or train longer",
            )
        if state.global_step:
            self._load(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the gradient of the penalty: how far the rows of A and the columns of B are from orthonormal."""
        sides = [(p, "lora_A" in name) for name, p in self._own("lora_A", "lora_B") if p.grad is not None]
        if not self.weight or not sides:
            return
        # by itself and not through the loss, which the trainer has backpropagated and clipped by now
        with torch.enable_grad():
            penalty = sum(_distance(p if is_a else p.T) for p, is_a in sides) / len(sides)
            gradients = torch.autograd.grad(self.weight * penalty, [p for p, _ in sides])
        for (parameter, _), gradient in zip(sides, gradients, strict=True):
            parameter.grad += gradient

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the allocator weigh the ranks by the gradients of this step, and mask the least."""
        if not any(parameter.grad is not None for _, parameter in self._own("lora_E")):
            return  # a step in which only a critic learned
        # PEFT keeps the pattern in the config between steps; there a checkpoint would save it, and cut the modules
        self.config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(state.global_step + 1)
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the allocator's state beside the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            averages = {name: getattr(self.tuner.rankallocator, name) for name in AVERAGES}
            torch.save({"pattern": self.pattern, **averages}, folder / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cut the modules to their ranks, as they are saved."""
        self.config.orth_reg_weight = self.weight
        # the trainer has put the best checkpoint's weights back by now, and its mask belongs to them
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self._load(Path(state.best_model_checkpoint))
        if self.pattern is not None:
            self.config.rank_pattern = self.pattern
            self.tuner.resize_modules_by_rank_pattern(self.pattern, self.name)
            if not all(map(any, self.pattern.values())):  # a module that lost every rank is saved as it should be
                warnings.filterwarnings("ignore", r".*LoRA tensor\(s\) have invalid shape", category=PeftWarning)

    def _own(self, *parts: str) -> list[tuple[str, Any]]:
        """Return this adapter's parameters; a critic may have another on the same base."""
        wanted = [f"{part}.{self.name}" for part in parts]
        return [(name, p) for name, p in self.tuner.model.named_parameters() if any(w in name for w in wanted)]

    def _load(self, folder: Path) -> None:
        state = torch.load(folder / STATE, map_location=self.tuner.model.device, weights_only=True)
        self.pattern = state["pattern"]
        for name in AVERAGES:
            setattr(self.tuner.rankallocator, name, state[name])


def _distance(rows: torch.Tensor) -> torch.Tensor:
    """Return the Frobenius norm of M M^T - I."""
    rows = rows.float()  # bfloat16 has three digits, and what is measured is a small difference from 1
    return torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device))
