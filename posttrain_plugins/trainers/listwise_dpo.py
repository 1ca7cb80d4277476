"""DPO on rankings (Rafailov et al., 2023, https://huggingface.co/papers/2305.18290, appendix A.3, equation 20).

1. Completions with equal `scores` are ties, as for the reward model on rankings.
2. Of `trl.DPOConfig` the loss is Plackett-Luce's on `beta` times the log-ratios; `loss_type` other than `sigmoid`, and
   what only pairs have, are refused.
3. A ranking with a completion longer than `max_length` is left out, where `trl.DPOTrainer` would cut it; how many are
   is warned of.
4. A mixture of experts gets no load-balancing loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import render
from posttrain_plugins.trainers.ranking import concordance, encode_ranking, plackett_luce_loss

__all__ = ["ListwiseCollator", "ListwiseDPOTrainer", "refuse_pairs", "short_enough"]


class ListwiseDPOTrainer(DPOTrainer):  # type: ignore[misc]
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

    def __init__(self, model: Any, args: DPOConfig | None = None, **kwargs: Any) -> None:
        args = args or DPOConfig()
        refuse_pairs(args, "listwise DPO")
        super().__init__(model=model, args=args, **kwargs)
        if kwargs.get("data_collator") is None:
            self.data_collator = ListwiseCollator(self.processing_class.pad_token_id)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: DPOConfig, dataset_name: str) -> Any:
        rows = []
        for i, row in enumerate(dataset):
            found = encode_ranking(processing_class, row, i)
            head = processing_class(render(processing_class, row["prompt"]), add_special_tokens=False)["input_ids"]
            found["prompt_lengths"] = [_shared(head, ids) for ids in found["ranked_ids"]]
            rows.append(found)
        kept = short_enough(
            rows,
            lambda row: max(map(len, row["ranked_ids"])),
            args.max_length,
            f"ranking of the {dataset_name} data set",
        )
        return type(dataset).from_list(kept)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["ranked_ids", "levels", "prompt_lengths"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean Plackett-Luce loss of `beta` times the log-ratios."""
        levels, sizes = inputs.pop("levels"), inputs.pop("sizes")
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        reference = self.ref_model if self.ref_model is not None else self.model
        before = torch.cat(self.compute_ref_log_probs(reference, inputs))  # (rankings x K,)
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
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["rewards/accuracies"].append(agreed / max(ordered, 1))
        best = torch.stack([part.detach()[0] - part.detach()[1:].mean() for part, _ in parts])
        metrics["rewards/margins"].append(float(best.mean()))
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class ListwiseCollator:
    """`input_ids`, `attention_mask`, `completion_mask` (rankings x K, T), `levels` (rankings x K,) and `sizes`."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        flat = [ids for row in rows for ids in row["ranked_ids"]]
        heads = torch.tensor([n for row in rows for n in row["prompt_lengths"]])
        width = max(map(len, flat))
        lengths = torch.tensor(list(map(len, flat)))
        at = torch.arange(width)
        attention = at < lengths[:, None]
        return {
            "input_ids": torch.tensor([list(ids) + [self.pad_token_id] * (width - len(ids)) for ids in flat]),
            "attention_mask": attention.long(),
            "completion_mask": (attention & (at >= heads[:, None])).long(),
            "levels": torch.tensor([level for row in rows for level in row["levels"]], dtype=torch.float32),
            "sizes": [len(row["ranked_ids"]) for row in rows],
        }


def refuse_pairs(args: DPOConfig, trainer: str) -> None:
    """Refuses the options of `trl.DPOConfig` that only TRL's own loss of pairs has.

    Raises:
        InputError: names the option, and the trainer that does not take it.
    """
    losses = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    refused = {
        f"loss_type={args.loss_type}": losses != ["sigmoid"],
        "precompute_ref_log_probs": args.precompute_ref_log_probs,
        "ld_alpha": args.ld_alpha is not None,
        "use_weighting": args.use_weighting,
        f"f_divergence_type={args.f_divergence_type}": args.f_divergence_type != "reverse_kl",
        f"router_aux_loss_coef={args.router_aux_loss_coef}": bool(args.router_aux_loss_coef),  # 0 is what it does
    }
    wrong = [name for name, is_set in refused.items() if is_set]
    if wrong:
        raise InputError(f"{trainer} does not take {wrong[0]}", hint="remove it from args, or use stage dpo on pairs")


def short_enough(
    rows: Sequence[dict[str, Any]], length: Callable[[dict[str, Any]], int], limit: int | None, what: str
) -> list[dict[str, Any]]:
    """The rows that fit; how many do not is warned of.

    Args:
        rows: encoded.
        length: of a row, in tokens.
        limit: `max_length`, in tokens; None lets every row be.
        what: a row is, for the warning: `ranking of the train data set`.

    Raises:
        InputError: none fits.
    """
    kept = [row for row in rows if limit is None or length(row) <= limit]
    if not kept:
        raise InputError(f"no {what} fits into max_length={limit}", hint="raise max_length")
    if len(kept) < len(rows):
        found = f"{len(rows) - len(kept)} of {len(rows)} rows are left out: no {what} may be longer than {limit} tokens"
        warnings.warn(f"{found}\n\nhint: raise max_length", stacklevel=2)
    return kept


def _shared(head: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens of the prompt stand unchanged before the completion."""
    pairs = enumerate(zip(head, ids, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(head), len(ids)))
