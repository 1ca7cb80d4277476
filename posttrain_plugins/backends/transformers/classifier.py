"""A transformers model that judges texts: one row of logits for a text, or one for each of its tokens.

Rewards are built on it. It is loaded at first use and batches by length; a pickle never holds the model. No paper.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from posttrain_plugins.backends.transformers.backend import load_tokenizer
from posttrain_plugins.models.quantization import quantization_config
from posttrain_plugins.models.stack import load_adapted, with_plain_head

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
            self._model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        return self._model

    @property
    def is_adapter(self) -> bool:
        return (Path(self.path) / "adapter_config.json").is_file()

    def close(self) -> None:
        """Free the model's memory; the next use loads it again."""
        self._model = None
        gc.collect()

    def logits(self, ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[int, Any]]:
        """The logits of token sequences.

        Args:
            ids: B sequences.
            batch_size: sequences per forward.

        Yields:
            `(i, logits)`: of sequence i, float32 on the CPU, (labels,) or (T, labels).
        """
        import torch

        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(ids), batch_size):
            batch = by_length[start : start + batch_size]
            width = len(ids[batch[-1]])
            pad = self.tokenizer.pad_token_id
            rows = torch.tensor([[*ids[i], *[pad] * (width - len(ids[i]))] for i in batch], device=self.model.device)
            lengths = torch.tensor([len(ids[i]) for i in batch], device=rows.device)
            mask = (torch.arange(width, device=rows.device) < lengths[:, None]).long()  # (B, T)
            with torch.inference_mode():
                found = self.model(input_ids=rows, attention_mask=mask, use_cache=False).logits.float().cpu()
            for i, of_row in zip(batch, found, strict=True):
                yield i, (of_row[: len(ids[i])] if self.task == "TokenClassification" else of_row)

    def _load(self) -> Any:
        import transformers

        labels: dict[str, Any] = {} if self.num_labels is None else {"num_labels": self.num_labels}
        if self.is_adapter:
            return load_adapted(self.path, self.task, **labels, **self._options()).eval()
        loader = getattr(transformers, f"AutoModelFor{self.task}")
        return loader.from_pretrained(self.path, **labels, **self._options()).eval()

    def _options(self) -> dict[str, Any]:
        import torch

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        options = {
            "dtype": self.loading.get("dtype") or "auto",
            "device_map": {"": device},
            "revision": self.loading.get("model_revision") or "main",
            "attn_implementation": self.loading.get("attn_implementation"),
            "quantization_config": self._quantization(),
        }
        return {name: value for name, value in options.items() if value is not None}

    def _quantization(self) -> Any:
        """TRL's own reading of its fields; bitsandbytes computes in bfloat16 where `dtype` is `auto`."""
        if not (self.loading.get("load_in_4bit") or self.loading.get("load_in_8bit")):
            return None
        from trl import ModelConfig

        known = {name: value for name, value in self.loading.items() if name in ModelConfig.__dataclass_fields__}
        dtype = known.get("dtype") or "auto"
        return with_plain_head(
            quantization_config(ModelConfig(**{**known, "dtype": "bfloat16" if dtype == "auto" else dtype}))
        )
