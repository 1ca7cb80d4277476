"""Passes that read a prompt once for all of its completions: prefix grouping (Liu et al., 2025, arXiv 2506.05433).

A batch of B rows, each a prompt of P columns and a completion of C, has U different prompts. A plain pass reads
B (P + C) tokens. Two ways read each prompt once, and no completion's padding counts as one of its labels:

- `cached`: the prompts, then the completions behind the prompts' keys and values, which are spread to B rows;
- `block`: one row for each prompt and all of its completions, L tokens without padding, and a mask by which a
  completion sees the prompt and itself. It is one pass, as gradient checkpointing needs it, which drops the cache.

Both give each token the position that it has in a plain pass, so log-probabilities and gradients are the same up to
rounding. Which is taken is a formula of these sizes (`cheapest`).

1. The paper splits attention into two calls for prompts and completions; here the model's own attention does it all.
2. The last token of a completion is not read, since it predicts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FORMULA", "WAYS", "Batch", "block_states", "cached_states", "cheapest", "costs", "pairs_per_token"]

WAYS = ("cached", "block")

FORMULA = (
    "the cheapest of plain = B (P+C) (1 + (P+C)/2k), cached = 1.15 (U P (1 + P/2k) + B K (1 + (P+K)/k)) and "
    "block = 1.1 U L (1 + L/k), plain on a tie; B rows, U prompts, P and C the columns of prompts and completions, "
    "K the completion columns that predict another, L the longest row of a prompt and what is read of its completions, "
    "k the pairs of attention that cost as much as a token"
)
CACHED_OVERHEAD, BLOCK_OVERHEAD = 1.15, 1.1
"""What smaller passes, spread keys and masks cost beside the tokens; of the measurements in docs/scaling.md."""
ATTENTION_OVERHEAD = 1.5
"""How much dearer a multiplication is in attention than in a linear layer; of the same."""

Read = Callable[..., Any]
"""A backbone's own forward."""


@dataclass(frozen=True)
class Batch:
    """B rows that a pass is to give log-probabilities for, prompts left-padded, completions right-padded."""

    ids: Tensor  # (B, P + C)
    mask: Tensor  # (B, P + C)
    width: int  # P
    group: Tensor  # (B,) which of the U prompts
    first: Tensor  # (U,) a row with that prompt
    is_label: Tensor  # (B, C) tokens that are predicted
    is_read: Tensor  # (B, C) tokens that predict another
    is_regular: bool  # padding stands where it should, and there is something to predict

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, width: int) -> Batch:
        """Find the prompts that rows share: equal tokens and equal padding."""
        mask = mask.to(ids.device)
        prompts = torch.where(mask[:, :width] > 0, ids[:, :width], -1)
        distinct, group = torch.unique(prompts, dim=0, return_inverse=True)
        rows = torch.arange(len(ids), device=ids.device)
        first = rows.new_full((len(distinct),), len(ids)).scatter_reduce(0, group, rows, "amin")
        is_label = mask[:, width:] > 0
        later = is_label.flip(1).cumsum(1).flip(1) - is_label.long() > 0
        order = mask.diff(dim=1)
        is_regular = bool(
            width > 0
            and (order[:, : width - 1] >= 0).all()
            and mask[:, width - 1].all()
            and (order[:, width:] <= 0).all()
            and is_label.any()
        )
        return cls(ids, mask, width, group, first, is_label, is_label & later, is_regular)

    @property
    def columns_read(self) -> int:
        """How many completion columns hold a token that predicts another: K."""
        return int(self.is_read.any(0).sum())

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row of a prompt and what is read of its completions: L."""
        return int((self._prompt_lengths + self._read_of_prompts).max())

    @property
    def _prompt_lengths(self) -> Tensor:
        return self.mask[self.first, : self.width].sum(1)  # (U,)

    @property
    def _read_of_prompts(self) -> Tensor:
        return torch.zeros_like(self.first).index_add(0, self.group, self.is_read.sum(1))  # (U,)

    @property
    def prompt_mask(self) -> Tensor:
        """(U, P), of the different prompts."""
        return self.mask[self.first, : self.width] > 0


def costs(batch: Batch, pairs: float) -> dict[str, float]:
    """Return what a pass costs in each way, in tokens.

    Args:
        batch: of the pass.
        pairs: of attention that cost as much as a token (`pairs_per_token`).
    """
    rows, total = batch.ids.shape
    prompts, width, read, longest = len(batch.first), batch.width, batch.columns_read, batch.longest_row
    cached = prompts * width * (1 + width / (2 * pairs)) + rows * read * (1 + (width + read) / pairs)
    return {
        "plain": rows * total * (1 + total / (2 * pairs)),
        "cached": CACHED_OVERHEAD * cached,
        "block": BLOCK_OVERHEAD * prompts * longest * (1 + longest / pairs),
    }


def cheapest(batch: Batch, pairs: float, ways: Collection[str]) -> str:
    """Return the cheapest of `plain` and the given ways by `FORMULA`; the sizes alone decide, never a clock."""
    if not batch.is_regular:
        return "plain"
    known = costs(batch, pairs)
    return min(("plain", *(way for way in WAYS if way in ways)), key=known.__getitem__)


def pairs_per_token(backbone: Any) -> float:
    """Return how many pairs of query and key cost as much as a token's way through the linear layers."""
    config = backbone.config.get_text_config()
    linear = [m for m in backbone.modules() if isinstance(m, torch.nn.Linear)]
    of_a_token = sum(layer.in_features * layer.out_features for layer in linear)
    if not linear:  # layers of another class: what a layer of this size has
        of_a_token = 12 * config.hidden_size**2 * config.num_hidden_layers
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_a_pair = 2 * config.num_attention_heads * head_size * config.num_hidden_layers
    return max(1.0, float(of_a_token / (ATTENTION_OVERHEAD * of_a_pair)))


def cached_states(read: Read, batch: Batch) -> Tensor:
    """Return the hidden states that predict the labels, (N, H): prompts once, their keys and values spread."""
    seen = read(
        input_ids=batch.ids[batch.first, : batch.width], attention_mask=batch.prompt_mask.long(), use_cache=True
    )
    states = seen.last_hidden_state[:, -1:][batch.group]  # (B, 1, H), of the prompt's last token
    columns = batch.columns_read
    if columns:
        cache = seen.past_key_values
        for layer in cache.layers:
            layer.reorder_cache(batch.group)
        end = batch.width + columns
        after = read(
            input_ids=batch.ids[:, batch.width : end],
            attention_mask=batch.mask[:, :end],
            past_key_values=cache,
            use_cache=True,
        )
        states = torch.cat([states, after.last_hidden_state], dim=1)  # (B, 1 + K, H)
    return states[batch.is_label[:, : columns + 1]]


def block_states(read: Read, batch: Batch, is_additive: bool) -> Tensor:
    """Return the hidden states that predict the labels, (N, H): one row for a prompt and all of its completions.

    Args:
        read: the backbone's own forward.
        batch: of the pass.
        is_additive: attention adds its mask to the scores, instead of taking booleans.
    """
    prompt, column = batch.prompt_mask.nonzero(as_tuple=True)
    lengths = batch.prompt_mask.sum(1)  # (U,)
    order = batch.group.argsort(stable=True)  # rows of a prompt one after the other
    row, at = batch.is_read[order].nonzero(as_tuple=True)  # (M,) each
    row = order[row]
    of = batch.group[row]
    count = torch.bincount(of, minlength=len(lengths))  # (U,)
    place = lengths[of] + torch.arange(len(of), device=of.device) - (count.cumsum(0) - count)[of]  # (M,)
    size = len(lengths), batch.longest_row  # (U, L)
    before = (batch.prompt_mask.cumsum(1) - 1)[prompt, column]
    ids, position = batch.ids.new_zeros(size), batch.ids.new_zeros(size)
    owner = batch.ids.new_full(size, -1)  # 0 for the prompt, 1 + row for a completion, -1 for padding
    ids[prompt, before] = batch.ids[batch.first[prompt], column]
    position[prompt, before] = column
    owner[prompt, before] = 0
    ids[of, place] = batch.ids[row, batch.width + at]
    position[of, place] = batch.width + at
    owner[of, place] = row + 1
    sees = (owner[:, None] == 0) | (owner[:, None] == owner[:, :, None])  # (U, L, L), of queries and keys
    sees &= position[:, None] <= position[:, :, None]
    sees |= torch.eye(size[1], dtype=torch.bool, device=ids.device)  # padding sees itself: no row of a mask is empty
    mask: Tensor = sees[:, None]
    if is_additive:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, torch.finfo(torch.float32).min)
    hidden = read(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).last_hidden_state
    state_of = (lengths - 1)[batch.group][:, None].repeat(1, batch.is_label.shape[1])  # (B, C), of the token before
    state_of[row, at + 1] = place
    label_row, label_column = batch.is_label.nonzero(as_tuple=True)
    return hidden[batch.group[label_row], state_of[label_row, label_column]]
