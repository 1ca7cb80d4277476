"""What trainers on data sets of our own columns share: rows as tokens, rows too long, and padding. No paper."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from posttrain_plugins.errors import InputError
from posttrain_plugins.trainers import compat

__all__ = ["EncodedRows", "pad_right"]


class EncodedRows:
    """Goes before one of TRL's trainers, whose data set then has the columns that `encode_row` makes.

    A class of it says `columns`, which the collator is given, and what a row is called.
    """

    columns: ClassVar[tuple[str, ...]]
    row_name: ClassVar[str] = "row"

    def encode_row(self, tokenizer: Any, row: Mapping[str, Any], number: int, args: Any) -> dict[str, Any]:
        """Return one row of the data set as tokens; `number` is which it is, for errors."""
        raise NotImplementedError

    def tokens_in(self, row: Mapping[str, Any]) -> int:
        """Return how long an encoded row is, for `max_length`."""
        return len(row["input_ids"])

    # TRL's own tokenizes the columns of pairs, and names them to transformers, which drops all others
    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if set(self.columns) <= set(dataset.column_names):
            return dataset  # `evaluate` brings a data set back that was prepared when the trainer started
        rows = [self.encode_row(processing_class, row, i, args) for i, row in enumerate(dataset)]
        kept = [row for row in rows if args.max_length is None or self.tokens_in(row) <= args.max_length]
        what, limit = f"{self.row_name} of the {dataset_name} data set", args.max_length
        if not kept:
            raise InputError(f"no {what} fits into max_length={limit}", hint="raise max_length")
        if len(kept) < len(rows):
            found = f"{len(rows) - len(kept)} of {len(rows)} rows are left out"
            message = f"{found}: no {what} may be longer than {limit} tokens\n\nhint: raise max_length"
            warnings.warn(message, stacklevel=2)
        return type(dataset).from_list(kept)

    def _set_signature_columns_if_needed(self) -> None:
        compat.keep_columns(self, self.columns)


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, both (rows, T), of token ids that are padded on the right."""
    width = max(map(len, rows))
    lengths = torch.tensor(list(map(len, rows)))
    return {
        "input_ids": torch.tensor([list(ids) + [pad_token_id] * (width - len(ids)) for ids in rows]),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
    }
