"""A key-value cache with room: what comes next is written in place, and rows that leave make room in place.

transformers' `DynamicCache` joins old and new in fresh memory at every layer of every step. Layers of another kind than
its plain one (sliding window, linear attention) stay as they are. No paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

ROOM_TOKENS = 16  # how much a cache grows at a time, at least
__all__ = ["RoomyLayer", "is_plain", "keep_rows", "spread"]


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer whose `keys` and `values` are the filled part of two buffers.

    Args:
        parts: layers that hold prompts, left-padded; all rows end in the same column.
        rows: (R,) which of the parts' rows each completion goes on from.
        room: tokens that a row can hold.
    """

    def __init__(self, parts: Sequence[DynamicLayer], rows: torch.Tensor, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = parts[0].dtype, parts[0].device, True
        rows = rows.to(self.device)
        self._keys = _joined([part.keys for part in parts], rows, room)
        self._values = _joined([part.values for part in parts], rows, room)
        self._show(len(rows), max(part.get_seq_length() for part in parts))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind what is there; return all keys and values, (R, heads, tokens, head size) each."""
        rows, begin, end = len(key_states), self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if end > self._keys.shape[-2]:  # by an eighth: few copies for long completions, little waste for short ones
            room = end + max(ROOM_TOKENS, end // 8)
            self._keys, self._values = _grown(self.keys, room), _grown(self.values, room)
        self._keys[:rows, :, begin:end] = key_states
        self._values[:rows, :, begin:end] = value_states
        self._show(rows, end)
        return self.keys, self.values

    def move(self, sources: torch.Tensor, targets: torch.Tensor, count: int) -> None:
        """Copy rows `sources` over rows `targets`, then keep the first `count`."""
        # few rows move, instead of all being copied into a smaller buffer
        self.keys[targets] = self.keys[sources]
        self.values[targets] = self.values[sources]
        self._show(count, self.keys.shape[-2])

    def _show(self, rows: int, tokens: int) -> None:
        self.keys, self.values = self._keys[:rows, :, :tokens], self._values[:rows, :, :tokens]


def is_plain(cache: Any) -> bool:
    """Return whether every layer can be given room; one that shares another's keys is empty, and counts."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def spread(caches: Sequence[Any], rows: torch.Tensor, room: int) -> Any:
    """Give every completion a row of its prompt's cache, and room to grow.

    Args:
        caches: what was read, in parts; several only where all are plain.
        rows: (R,) the prompt of each completion, counted through the parts.
        room: tokens that a row can hold.

    Returns:
        The first of the caches, with the rows of all.
    """
    cache = caches[0]
    for i, layer in enumerate(cache.layers):
        # exactly this type: its subclasses (sliding windows) rely on what their own `update` does
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = RoomyLayer([part.layers[i] for part in caches], rows, room)
        else:
            layer.reorder_cache(rows)
    return cache


def keep_rows(cache: Any, order: torch.Tensor, moved: torch.Tensor) -> None:
    """Keep the rows `order`, of which those at `moved` were elsewhere before and all others stay where they are."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.move(order[moved].to(layer.device), moved.to(layer.device), len(order))
        else:
            layer.reorder_cache(order)


def _grown(filled: torch.Tensor, room: int) -> torch.Tensor:
    rows, heads, tokens, size = filled.shape
    buffer = filled.new_empty(rows, heads, room, size)
    buffer[:, :, :tokens] = filled
    return buffer


def _joined(parts: Sequence[torch.Tensor], rows: torch.Tensor, room: int) -> torch.Tensor:
    """Return the parts' rows as asked for, right-aligned, in a buffer."""
    _, heads, _, size = parts[0].shape
    width = max(part.shape[-2] for part in parts)
    buffer = parts[0].new_empty(len(rows), heads, min(room, width + ROOM_TOKENS), size)
    begin = 0
    for part in parts:
        count, _, tokens, _ = part.shape
        here = ((rows >= begin) & (rows < begin + count)).nonzero().flatten()
        # Masked, but read: attention multiplies it with a weight of 0, and 0 times NaN of fresh memory is NaN.
        buffer[here, :, : width - tokens] = 0
        buffer[here, :, width - tokens : width] = part[rows[here] - begin]
        begin += count
    return buffer
