"""`reward_model`: what a trained reward model gives, as a reward function in TRL's contract.

Papers: Stiennon et al., 2020 (https://huggingface.co/papers/2009.01325); Ouyang et al., 2022
(https://huggingface.co/papers/2203.02155). Prompt and completion become the tokens that `trl.RewardTrainer` makes of
them, EOS behind plain text among them: what is scored is what was trained on (`text/reward_input.py`).

1. Batches are formed by length, so the last bits of a score may depend on what else is in the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.backends.transformers.classifier import Classifier
from posttrain_plugins.errors import InputError
from posttrain_plugins.models.folder import task_of
from posttrain_plugins.text.reward_input import reward_input_ids, rows_of
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

    __name__ = "reward_model"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    holds_model: ClassVar[bool] = True
    example_params: ClassVar[dict[str, Any]] = {"model_name_or_path": "tiny:classifier", "max_length": 128}
    tolerance: ClassVar[float] = 1e-5  # padding to the longest row of a batch moves the last bits
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
    model_revision: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        # transformers would load it with a random head and no more than a warning; every score would be noise.
        if task_of(self.model_name_or_path) == "CausalLM":
            raise InputError(
                f"reward_model has no trained head: {self.model_name_or_path} is a causal language model",
                hint="name a stage `reward`, or its folder",
            )
        self.classifier = Classifier(
            self.model_name_or_path, "SequenceClassification", loading=vars(self), device=self.device
        )

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores: logits, larger is better.

        Args:
            columns: `tools` and `chat_template_kwargs` are rendered as they were in training.
        """
        scores: list[float | None] = [None] * len(completions)
        for i, logits in self.classifier.logits(self._encode(prompts, completions, columns), self.batch_size):
            scores[i] = float(logits[0])
        return scores

    def count_tokens(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """Count the tokens that scoring these reads."""
        return sum(map(len, self._encode(prompts, completions, {})))

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        self.classifier.close()

    def _encode(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Mapping[str, Any]
    ) -> list[list[int]]:
        rows = zip(prompts, completions, rows_of(columns, len(completions)), strict=True)
        tokenizer = self.classifier.tokenizer
        return [reward_input_ids(tokenizer, prompt, text, **row)[: self.max_length] for prompt, text, row in rows]
