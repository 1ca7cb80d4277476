"""Rankings: the Plackett-Luce loss, and a reward model trained with it.

Papers: see `posttrain_plugins.stages.ranking`. With two completions the loss is Bradley-Terry's.

1. Completions with equal `scores` are ties: neither is held against the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from trl import RewardConfig, RewardTrainer

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import in_format_of
from posttrain_plugins.text.reward_input import TEMPLATE_COLUMNS, reward_input_ids
from posttrain_plugins.trainers import compat, stage_rules
from posttrain_plugins.trainers.encoded_rows import EncodedRows, pad_right

__all__ = [
    "RankedRows",
    "RankingCollator",
    "RankingConfig",
    "RankingTrainer",
    "concordance",
    "encode_ranking",
    "pairs_of",
    "plackett_luce_loss",
]


@dataclass
class RankingConfig(RewardConfig):  # type: ignore[misc]
    """`trl.RewardConfig`; `per_device_train_batch_size` counts rankings, not completions."""


def plackett_luce_loss(scores: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return minus the log-likelihood of a ranking: each completion against itself and all that are ranked below it.

    Args:
        scores: (K,), what the model gives.
        levels: (K,), what the ranking says: larger is better, equal is a tie.

    Returns:
        The mean over the completions that have one ranked below them; 0 where all are ties.

    Example:
        >>> round(float(plackett_luce_loss(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))), 4)
        0.3133
    """
    beats = levels[:, None] > levels[None, :]  # (K, K); a tie beats nothing, so it stands in no denominator
    against = beats | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    losses = torch.logsumexp(scores[None, :].masked_fill(~against, float("-inf")), dim=1) - scores  # (K,)
    is_over = beats.any(dim=1)
    return (losses * is_over).sum() / is_over.sum().clamp(min=1)


def concordance(scores: torch.Tensor, levels: torch.Tensor) -> tuple[int, int]:
    """Count the pairs that the ranking orders which the scores order in the same way, and all that it orders."""
    beats = levels[:, None] > levels[None, :]
    agreed = (scores[:, None] > scores[None, :]) & beats
    return int(agreed.sum()), int(beats.sum())


class RankedRows(EncodedRows):
    """Goes before one of TRL's trainers that is given rankings."""

    columns: ClassVar[tuple[str, ...]] = ("ranked_ids", "levels")
    row_name = "ranking"

    def encode_row(self, tokenizer: Any, row: Mapping[str, Any], number: int, args: Any) -> dict[str, Any]:
        """Return the ranking's tokens."""
        return encode_ranking(tokenizer, row, number)

    def tokens_in(self, row: Mapping[str, Any]) -> int:
        """Return the length of the longest completion, with its prompt."""
        return max(map(len, row["ranked_ids"]))


class RankingTrainer(RankedRows, RewardTrainer):  # type: ignore[misc]
    """`trl.RewardTrainer` on `prompt`, `completions` (the best first) and, where there are ties, `scores`.

    Raises:
        InputError: a row has fewer than two completions, or not one score for each.

    Example:
        >>> RankingTrainer(model="Qwen/Qwen3-0.6B", args=RankingConfig(), train_dataset=rankings)  # doctest: +SKIP
    """

    _tag_names = ("trl", "ranking")
    _name = "Ranking"

    def __init__(self, model: Any, args: RankingConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model=model, args=args or RankingConfig(), **kwargs)
        if kwargs.get("data_collator") is None:
            self.data_collator = RankingCollator(self.processing_class.pad_token_id)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean Plackett-Luce loss over the batch's rankings, and TRL's centring term where it is set."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores = outputs.logits.squeeze(-1)  # (rankings x K,)
        # rankings are of different sizes, so they are laid under each other and taken apart again
        parts = list(zip(scores.split(inputs["sizes"]), inputs["levels"].split(inputs["sizes"]), strict=True))
        loss = torch.stack([plackett_luce_loss(part, levels) for part, levels in parts]).mean()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * (scores**2).mean()
        counts = [concordance(part.detach(), levels) for part, levels in parts]
        agreed, ordered = (sum(column) for column in zip(*counts, strict=True))
        compat.add_metric(self, "accuracy", agreed / max(ordered, 1))
        compat.add_metric(self, "mean_reward", float(scores.detach().mean()))
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class RankingCollator:
    """Lays the rankings' completions under each other: `input_ids` and `attention_mask` (rankings x K, T)."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            **pad_right([ids for row in rows for ids in row["ranked_ids"]], self.pad_token_id),
            "levels": torch.tensor([level for row in rows for level in row["levels"]], dtype=torch.float32),
            "sizes": [len(row["ranked_ids"]) for row in rows],
        }


def encode_ranking(tokenizer: Any, row: Mapping[str, Any], number: int) -> dict[str, list[Any]]:
    """Return a ranking as tokens, rendered as a reward model reads them.

    Args:
        tokenizer: with a chat template where the prompt is conversational.
        row: `prompt`, `completions`, and `scores` where there are ties.
        number: which row this is, for errors.

    Returns:
        `ranked_ids` (K, T) and `levels` (K,), larger is better.
    """
    completions = list(row["completions"])
    levels = [float(value) for value in row.get("scores") or range(len(completions), 0, -1)]
    if issue := stage_rules.ranking_concern(row, number):
        raise InputError(issue.message, hint=issue.hint)
    options = {column: row[column] for column in TEMPLATE_COLUMNS if column in row}
    ids = [reward_input_ids(tokenizer, row["prompt"], completion, **options) for completion in completions]
    return {"ranked_ids": ids, "levels": levels}


def pairs_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the pairs that a ranking orders, as a reward model's data: `prompt`, `chosen`, `rejected`."""
    texts = [in_format_of(row["prompt"], completion) for completion in row["completions"]]
    levels = list(row.get("scores") or range(len(texts), 0, -1))
    ordered = [(i, j) for i in range(len(texts)) for j in range(len(texts)) if levels[i] > levels[j]]
    return [{"prompt": row["prompt"], "chosen": texts[i], "rejected": texts[j]} for i, j in ordered]
