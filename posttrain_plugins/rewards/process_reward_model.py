"""`process_reward_model`: what a process reward model (PRM) says of each step, and of the whole by its steps.

Papers: Lightman et al., 2023 (https://huggingface.co/papers/2305.20050); aggregation as in Snell et al., 2024
(https://huggingface.co/papers/2408.03314), section 5.1. Takes our stage `prm`'s models (one logit, a sigmoid) and those
that TRL's `PRMTrainer` made (two logits, the softmax's second).

1. A text is tokenised as a whole; a step's score is read at the token that holds its last character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from posttrain_plugins.backends.transformers.classifier import Classifier
from posttrain_plugins.text import render, to_text
from posttrain_plugins.text.steps import SEPARATOR, Aggregate, aggregate, last_tokens, split_steps
from posttrain_plugins.types import Prompt

__all__ = ["ProcessRewardModel"]


@dataclass
class ProcessRewardModel:
    """Score steps with a token classification model.

    The model is loaded at the first call; until then the reward can be pickled, and a pickle never holds the model.

    Args:
        model_name_or_path: a folder, a PEFT adapter's too, or a Hub id.
        separator: what ends a step; the rule of `posttrain_plugins.text.steps`.
        aggregate: how the steps' probabilities become one score: `min`, `prod`, `last` or `mean`.
        num_labels: of the saved head: 1 (a sigmoid), or 2 (a softmax, "right" the second), as TRL's trainer had it.
        batch_size: completions per forward.
        max_length: tokens of prompt and completion at most, cut on the right; steps behind the cut score 0.
        dtype: of the weights; this and the rest as in TRL's `ModelConfig`.
        load_in_4bit: quantize the base with bitsandbytes.
        load_in_8bit: the same with 8 bits.
        bnb_4bit_quant_type: `nf4` or `fp4`.
        use_bnb_nested_quant: quantize the quantization constants too.
        attn_implementation: attention kernel.
        model_revision: of a Hub id.
        device: by default `cuda` where there is one.
    """

    __name__ = "process_reward_model"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ()
    holds_model: ClassVar[bool] = True
    example_params: ClassVar[dict[str, Any]] = {"model_name_or_path": "tiny:tokens", "max_length": 128}
    tolerance: ClassVar[float] = 1e-5  # padding to the longest row of a batch moves the last bits
    expected_failures: ClassVar[dict[str, str]] = {
        "check_both_formats": "a chat template stands around messages, so the model reads another text",
    }

    model_name_or_path: str
    separator: str = SEPARATOR
    aggregate: Aggregate = "min"
    num_labels: int = 1
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
        self.classifier = Classifier(
            self.model_name_or_path,
            "TokenClassification",
            num_labels=self.num_labels,
            loading=vars(self),
            device=self.device,
        )

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1], the aggregate of a completion's steps; None for one without any step."""
        return [aggregate(scores, self.aggregate) for scores in self.step_scores(prompts, completions, **columns)]

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any
    ) -> list[list[float]]:
        """Score each step: how likely the completion is right up to its end.

        Args:
            columns: with `steps` (B lists of texts that joined are the completion), these; else `separator` splits.

        Returns:
            B lists of probabilities, one for each step.
        """
        texts = [to_text(completion) for completion in completions]
        steps = columns.get("steps") or [split_steps(text, self.separator) for text in texts]
        # Prompt and completion as one text: two texts would be tokenised apart, and the model never saw that border.
        heads = [render(self.classifier.tokenizer, prompt) for prompt in prompts]
        encoded = self._encode([head + text for head, text in zip(heads, texts, strict=True)])
        scores = [[0.0] * len(of_one) for of_one in steps]
        read = [i for i, of_one in enumerate(steps) if of_one]  # no forward for a completion without a step
        for at, logits in self.classifier.logits([encoded["input_ids"][i] for i in read], self.batch_size):
            i = read[at]
            # (T, 1) by a sigmoid, (T, 2) by a softmax, whose second label is "right".
            right = (logits.sigmoid()[:, 0] if logits.shape[1] == 1 else logits.softmax(-1)[:, 1]).tolist()
            offsets = encoded["offset_mapping"][i]
            ends = [len(heads[i]) + end for end in accumulate(map(len, steps[i]))]
            tokens = last_tokens([start for start, _ in offsets], ends)
            cut = offsets[-1][1]  # what max_length left; behind it the last token would speak for every step
            scores[i] = [right[t] if end <= cut else 0.0 for t, end in zip(tokens, ends, strict=True)]
        return scores

    def count_tokens(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """Count the tokens that scoring these reads."""
        tokenizer = self.classifier.tokenizer
        texts = [render(tokenizer, p) + to_text(c) for p, c in zip(prompts, completions, strict=True)]
        return sum(map(len, self._encode(texts)["input_ids"]))

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        self.classifier.close()

    def _encode(self, texts: list[str]) -> Any:
        if not texts:  # which a tokenizer refuses
            return {"input_ids": [], "offset_mapping": []}
        is_cut = self.max_length is not None
        return self.classifier.tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=is_cut,
            truncation_side="right",
            max_length=self.max_length,
        )
