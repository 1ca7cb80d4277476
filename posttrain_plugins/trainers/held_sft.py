"""SFT that is held near the model it starts from, by a KL penalty on every token that it learns.

The loss is TRL's and `kl_coef * KL(policy || start)`, the mean over the learned tokens, exact over the vocabulary.
Learning without forgetting (Li and Hoiem, 2016, https://huggingface.co/papers/1606.09282) holds a network to its old
outputs in this way; the price of a nat of KL in the reward of RLHF (Ouyang et al., 2022,
https://huggingface.co/papers/2203.02155, section 3.5) does so for RL: TRL's `beta`, our PPO's `kl_coef`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from posttrain_plugins.trainers import compat

__all__ = ["HeldSFTTrainer", "kl_of"]


def kl_of(logits: Tensor, before: Tensor, labels: Tensor) -> Tensor:
    """Return the KL of each token that is learned, (N,): of the policy from the model that it started from.

    Args:
        logits: (B, T, V), of the policy; or more of them, the last T of which count.
        before: (B, T, V), log-probabilities of the model that it started from, likewise.
        labels: (B, T), -100 where nothing is learned; the token at t is predicted at t - 1.
    """
    width = labels.size(1)
    logits, before = (
        logits[:, -width:],
        before[:, -width:],
    )  # a prompt adapter's learned tokens stand before the batch's
    mask = labels[:, 1:] != -100
    now = logits[:, :-1][mask].float().log_softmax(-1)
    return (now.exp() * (now - before[:, :-1][mask])).sum(-1)


class HeldSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` whose loss has a KL penalty to the model that training starts from.

    The reference is what DPO's is: the adapter switched off, a frozen copy of an adapter that is trained on, or the
    same model once more where all weights are trained.

    Args:
        *args: as `trl.SFTTrainer` takes them.
        kl_coef: price of a nat of KL per token.
        **options: as `trl.SFTTrainer` takes them.
    """

    def __init__(self, *args: Any, kl_coef: float, **options: Any) -> None:
        self.kl_coef = kl_coef
        super().__init__(*args, **options)
        self.ref_model = compat.add_reference(self, is_new_adapter=options.get("peft_config") is not None)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss and the penalty: a pass of the reference and one of the policy beside TRL's own."""
        given = {**{name: value for name, value in inputs.items() if name != "labels"}, "use_cache": False}
        # before the policy's passes: a switch of adapters between one and its backward would reach what is recomputed
        before = compat.reference_log_probs(self, given)
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        each = kl_of(model(**given).logits, before, inputs["labels"])
        # as TRL's own sum over tokens: of all processes and accumulated batches, DDP averages over the processes
        count = len(each) if num_items_in_batch is None else num_items_in_batch
        processes = self.accelerator.num_processes
        share = processes if self.args.average_tokens_across_devices and num_items_in_batch is not None else 1
        penalty = self.kl_coef * share * each.sum() / torch.as_tensor(count, device=each.device).clamp(min=1)
        compat.add_metric(self, "kl", float(self.accelerator.gather(each.detach().mean()).mean()))
        return (found[0] + penalty, found[1]) if return_outputs else found + penalty
