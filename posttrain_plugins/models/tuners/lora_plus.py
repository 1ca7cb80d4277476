"""LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al., 2024).

Paper: https://huggingface.co/papers/2402.12354.

1. The optimizer that the trainer makes is kept, whichever it is: its groups are split. PEFT's
   `create_loraplus_optimizer` makes one of its own, without the trainer's weight decay and the critic's learning rate.
2. The ratio holds for every B, of embeddings too, for which PEFT has a fixed learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from posttrain_plugins.errors import InputError

__all__ = ["LoraPlusConfig"]

B_MATRICES = ("lora_B", "lora_embedding_B")


@dataclass
class LoraPlusConfig(LoraConfig):  # type: ignore[misc]
    """A `peft.LoraConfig` whose B matrices learn faster than its A.

    It is saved as a LoRA config: the ratio belongs to the training, not to the adapter.

    Args:
        loraplus_lr_ratio: learning rate of B over that of A; section 4 of the paper finds about 16.
    """

    loraplus_lr_ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loraplus_lr_ratio < 1:
            raise InputError(f"loraplus_lr_ratio is {self.loraplus_lr_ratio}, expected 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that PEFT knows."""
        # an adapter is read by programs that have never heard of us: PEFT warns of, and drops, fields it does not know
        return {name: value for name, value in super().to_dict().items() if name != "loraplus_lr_ratio"}

    def prepare(self, trainer: Any) -> None:
        """Let the trainer's optimizer have groups for the B matrices of the adapter, or of the `tasks`, it trains."""
        # wrapped and not called: the trainer makes its optimizer when it starts, after FSDP or DeepSpeed have the model
        create = trainer.create_optimizer

        def create_with_ratio(*args: Any, **kwargs: Any) -> Any:
            optimizer = create(*args, **kwargs)
            _split(optimizer, self._fast(trainer), self.loraplus_lr_ratio)
            return optimizer

        trainer.create_optimizer = create_with_ratio

    @staticmethod
    def _fast(trainer: Any) -> set[int]:
        """Return the ids of the B matrices, but for those of other adapters on the same base, as a critic's."""
        trained = set(getattr(trainer, "tasks", None) or [trainer.model.active_adapter])
        return {
            id(parameter)
            for name, parameter in trainer.model.named_parameters()
            if not trained.isdisjoint(parts := name.split(".")) and not set(B_MATRICES).isdisjoint(parts)
        }


def _split(optimizer: Any, fast: set[int], ratio: float) -> None:
    """Move the fast parameters of each group to one more, with the group's own options."""
    if not hasattr(optimizer, "param_groups"):
        hint = "take the optimizer out of the DeepSpeed config, or loraplus_lr_ratio out of the adapter"
        raise InputError("loraplus_lr_ratio needs an optimizer of the trainer's own", hint=hint)
    # a copy of the list, which grows; the scheduler is made after this, and takes each group's rate for its start
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if id(parameter) in fast]
        if chosen:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in fast]
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * ratio})
