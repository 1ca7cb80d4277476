"""`reward_model`: what a trained reward model gives, as a reward function in TRL's contract.

Papers: Stiennon et al., 2020 (https://huggingface.co/papers/2009.01325); Ouyang et al., 2022
(https://huggingface.co/papers/2203.02155). Prompt and completion are rendered as TRL's `GRPOTrainer` renders them for a
reward model, so training and test time see the same scores.

1. Batches are formed by length, so the last bits of a score may depend on what else is in the call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.quantization import quantization_config
from posttrain_plugins.models.stack import load_adapted, task_of, with_plain_head
from posttrain_plugins.text import is_conversational
from posttrain_plugins.types import Prompt

__all__ = ["RewardModel"]


@dataclass
class RewardModel:
    """Score completions with a sequence classification model of one label.

    The model is loaded at the first call; until then the reward can be pickled, and a pickle never holds the model.

    Args:
        model_name_or_path: a folder, a PEFT adapter's too, or a Hub id.
        batch_size: completions per forward.
        max_length: tokens of prompt and completion at most, cut on the right; None cuts nothing.
        dtype: of the weights; `auto` as they were saved.
        load_in_4bit: quantize the base with bitsandbytes; this and the next three as in TRL's `ModelConfig`.
        load_in_8bit: the same with 8 bits.
        bnb_4bit_quant_type: `nf4` or `fp4`.
        use_bnb_nested_quant: quantize the quantization constants too.
        attn_implementation: as in TRL's `ModelConfig`.
        model_revision: as in TRL's `ModelConfig`.
        device: by default `cuda` where there is one.

    Raises:
        InputError: the folder holds a language model, whose head would be random.
    """

    requires_columns: ClassVar[tuple[str, ...]] = ()
    holds_model: ClassVar[bool] = True
    example_params: ClassVar[dict[str, Any]] = {"model_name_or_path": "tiny:classifier", "max_length": 128}
    tolerance: ClassVar[float] = 1e-5
    expected_failures: ClassVar[dict[str, str]] = {
        "check_both_formats": "a chat template stands around messages, so the model reads another text",
    }

    model_name_or_path: str
    batch_size: int = 32
    max_length: int | None = None
    dtype: str = "auto"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False
    attn_implementation: str | None = None
    model_revision: str = "main"
    device: str | None = None

    def __post_init__(self) -> None:
        if task_of(self.model_name_or_path) == "CausalLM":
            raise InputError(
                f"reward_model has no trained head: {self.model_name_or_path} is a causal language model",
                hint="name a stage `reward`, or its folder",
            )
        self.__name__ = "reward_model"  # what TRL logs it under
        self._model: Any = None
        self._tokenizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_tokenizer": None}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Score each completion.

        Args:
            prompts: B prompts, plain or conversational.
            completions: B completions in the same format.

        Returns:
            B scores: logits, larger is better.
        """
        texts = self._render(prompts, completions)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores: list[float | None] = [None] * len(texts)
        for start in range(0, len(texts), self.batch_size):
            batch = by_length[start : start + self.batch_size]
            for i, score in zip(batch, self._forward([texts[i] for i in batch]), strict=True):
                scores[i] = score
        return scores

    def count_tokens(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """The tokens that scoring these reads."""
        return sum(map(len, self._tokenize(self._render(prompts, completions))["input_ids"]))

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        self._model = None

    def _render(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> list[str]:
        self._load_tokenizer()
        return [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def _text(self, prompt: Any, completion: Any) -> str:
        if is_conversational(prompt):
            return str(self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
        return str(prompt + completion)

    def _tokenize(self, texts: list[str], **options: Any) -> Any:
        is_cut = self.max_length is not None
        return self._tokenizer(
            text=texts, add_special_tokens=False, truncation=is_cut, max_length=self.max_length, **options
        )

    def _forward(self, texts: list[str]) -> list[float]:
        import torch

        self._load_model()
        inputs = self._tokenize(texts, padding=True, padding_side="right", return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            logits = self._model(**inputs).logits[:, 0]  # (B,)
        return [float(logit) for logit in logits.float().tolist()]

    def _load_tokenizer(self) -> None:
        if self._tokenizer is not None:
            return
        from transformers import AutoTokenizer

        path = Path(self.model_name_or_path)
        name = self.model_name_or_path
        if self._is_adapter and not (path / "tokenizer_config.json").is_file():
            name = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        self._tokenizer = AutoTokenizer.from_pretrained(name, revision=self.model_revision)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def _load_model(self) -> None:
        if self._model is not None:
            return
        self._load_tokenizer()
        if self._is_adapter:
            self._model = load_adapted(
                self.model_name_or_path, "SequenceClassification", num_labels=1, **self._options()
            )
        else:
            from transformers import AutoModelForSequenceClassification as Loader

            self._model = Loader.from_pretrained(self.model_name_or_path, num_labels=1, **self._options())
        self._model.eval()
        self._model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id

    @property
    def _is_adapter(self) -> bool:
        return (Path(self.model_name_or_path) / "adapter_config.json").is_file()

    def _options(self) -> dict[str, Any]:
        import torch

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        options: dict[str, Any] = {"dtype": self.dtype, "device_map": {"": device}, "revision": self.model_revision}
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        if self.load_in_4bit or self.load_in_8bit:
            options["quantization_config"] = self._quantization()
        return options

    def _quantization(self) -> Any:
        """TRL's own reading of its fields; bitsandbytes computes in bfloat16 where `dtype` is `auto`."""
        from trl import ModelConfig

        config = ModelConfig(
            dtype="bfloat16" if self.dtype == "auto" else self.dtype,
            load_in_4bit=self.load_in_4bit,
            load_in_8bit=self.load_in_8bit,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type,
            use_bnb_nested_quant=self.use_bnb_nested_quant,
        )
        return with_plain_head(quantization_config(config))
