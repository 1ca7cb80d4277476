"""A transformers model that judges texts: one row of logits for a text, or one for each of its tokens.

Rewards are built on it. It is loaded at first use and batches by length; a pickle never holds the model. No paper.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from posttrain_plugins.models.load import load_model, load_tokenizer

__all__ = ["Classifier"]


class Classifier:
    """A sequence or token classification model, full, adapter or quantized.

    Args:
        path: a folder, a PEFT adapter's too, or a Hub id.
        task: `SequenceClassification` or `TokenClassification`.
        num_labels: of the head; None takes the saved number.
        loading: TRL `ModelConfig` fields (dtype, load_in_4bit, attn_implementation, model_revision ...).
        device: by default `cuda` where there is one.
    """

    def __init__(
        self,
        path: str,
        task: Literal["SequenceClassification", "TokenClassification"],
        *,
        num_labels: int | None = 1,
        loading: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> None:
        self.path = path
        self.task = task
        self.num_labels = num_labels
        self.loading = dict(loading or {})
        self.device = device
        self._model: Any = None
        self._tokenizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_tokenizer": None}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer beside the model, with a padding token."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.path, self.loading)
            if self._tokenizer.pad_token is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token
        return self._tokenizer

    @property
    def model(self) -> Any:
        """The model, in evaluation mode."""
        if self._model is None:
            self._model = self._load()
            # transformers finds that last token by looking for this one
            self._model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        return self._model

    def close(self) -> None:
        """Free the model's memory; the next use loads it again."""
        self._model = None
        gc.collect()  # models hold themselves in cycles: without this their memory stays until some later collection

    def logits(self, ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[int, Any]]:
        """Yield the logits of token sequences.

        Args:
            ids: B sequences.
            batch_size: sequences per forward.

        Yields:
            `(i, logits)`: of sequence i, float32 on the CPU, (labels,) or (T, labels).
        """
        import torch

        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # rows of about one length need little padding
        for start in range(0, len(ids), batch_size):
            batch = order[start : start + batch_size]
            width = max(len(ids[i]) for i in batch)
            pad = self.tokenizer.pad_token_id  # on the right: a sequence model reads its score at the last real token
            rows = torch.tensor([[*ids[i], *[pad] * (width - len(ids[i]))] for i in batch], device=self.model.device)
            ends = torch.tensor([len(ids[i]) for i in batch], device=rows.device)
            mask = (torch.arange(width, device=rows.device) < ends[:, None]).long()  # (B, T)
            with torch.inference_mode():
                found = self.model(input_ids=rows, attention_mask=mask, use_cache=False).logits.float().cpu()
            for i, of_row in zip(batch, found, strict=True):
                yield i, (of_row[: len(ids[i])] if self.task == "TokenClassification" else of_row)

    def _load(self) -> Any:
        labels = {} if self.num_labels is None else {"num_labels": self.num_labels}
        return load_model(self.path, self.loading, self.device, self.task, **labels).eval()
