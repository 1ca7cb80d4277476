"""DPO on rankings (Rafailov et al., 2023, https://huggingface.co/papers/2305.18290, appendix A.3, equation 20).

1. Completions with equal `scores` are ties, as for the reward model on rankings.
2. Of `trl.DPOConfig` the loss is Plackett-Luce's on `beta` times the log-ratios; `loss_type` other than `sigmoid`, and
   what only pairs have, are refused.
3. A ranking with a completion longer than `max_length` is left out, where `trl.DPOTrainer` would cut it; how many are
   is warned of.
4. A mixture of experts gets no load-balancing loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer
from trl.data_utils import common_prefix_length

from posttrain_plugins.text import render
from posttrain_plugins.trainers import compat, stage_rules
from posttrain_plugins.trainers.ppo import rules
from posttrain_plugins.trainers.ranking import RankedRows, RankingCollator, concordance, plackett_luce_loss

__all__ = ["ListwiseCollator", "ListwiseDPOTrainer"]


class ListwiseDPOTrainer(RankedRows, DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` on `prompt`, `completions` (the best first) and, where there are ties, `scores`.

    The reference is what DPO's is: the same path loaded again, or the adapter switched off. Rankings with a completion
    of more than `max_length` tokens, with its prompt, are left out.

    Raises:
        InputError: an option that only pairs have, or a row that is no ranking.

    Example:
        >>> ListwiseDPOTrainer(model="Qwen/Qwen3-0.6B", args=DPOConfig(), train_dataset=rankings)  # doctest: +SKIP
    """

    _tag_names = ("trl", "listwise-dpo")
    _name = "Listwise DPO"
    columns = ("ranked_ids", "levels", "prompt_lengths")

    def __init__(self, model: Any, args: DPOConfig | None = None, **kwargs: Any) -> None:
        args = args or DPOConfig()
        rules.refuse(stage_rules.pair_concerns(args, "listwise DPO"))
        super().__init__(model=model, args=args, **kwargs)
        if kwargs.get("data_collator") is None:
            self.data_collator = ListwiseCollator(self.processing_class.pad_token_id)

    def encode_row(self, tokenizer: Any, row: Mapping[str, Any], number: int, args: DPOConfig) -> dict[str, Any]:
        """Return the ranking's tokens, and how many of each are the prompt's."""
        encoded = super().encode_row(tokenizer, row, number, args)
        is_plain = isinstance(row["prompt"], str)  # a chat template writes BOS itself
        prompt = tokenizer(render(tokenizer, row["prompt"]), add_special_tokens=is_plain)["input_ids"]
        # a token may span the end of the prompt: what changes there is the completion's, as in `trl.DPOTrainer`
        return {**encoded, "prompt_lengths": [common_prefix_length(prompt, ids) for ids in encoded["ranked_ids"]]}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean Plackett-Luce loss of `beta` times the log-ratios."""
        levels, sizes = inputs.pop("levels"), inputs.pop("sizes")  # what is left goes to TRL's reference pass
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        reference = self.ref_model if self.ref_model is not None else self.model
        before = torch.cat(self.compute_ref_log_probs(reference, inputs))  # (rankings x K,)
        # TRL's fused head gives log-probabilities of the labels and never holds the logits of all tokens
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            use_cache=False,
            fused_lm_head=True,
        )
        width = inputs["completion_mask"].shape[1] - 1
        logps = outputs.log_probs[:, -width:].sum(dim=1)  # (rankings x K,)
        rewards = self.beta * (logps - before)
        parts = list(zip(rewards.split(sizes), levels.split(sizes), strict=True))
        loss = torch.stack([plackett_luce_loss(part, of_part) for part, of_part in parts]).mean()
        counts = [concordance(part.detach(), of_part) for part, of_part in parts]
        agreed, ordered = (sum(column) for column in zip(*counts, strict=True))
        compat.add_metric(self, "rewards/accuracies", agreed / max(ordered, 1))
        best = torch.stack([part.detach()[0] - part.detach()[1:].mean() for part, _ in parts])
        compat.add_metric(self, "rewards/margins", float(best.mean()))
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class ListwiseCollator(RankingCollator):
    """`RankingCollator` with `completion_mask` (rankings x K, T) beside its tensors."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(rows)
        starts = torch.tensor([n for row in rows for n in row["prompt_lengths"]])
        is_completion = torch.arange(batch["input_ids"].size(1)) >= starts[:, None]
        return {**batch, "completion_mask": batch["attention_mask"] * is_completion}
