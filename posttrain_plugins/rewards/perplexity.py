"""`perplexity`: how well a language model would have expected the completion.

Paper: Jelinek et al., 1977 (https://doi.org/10.1121/1.2016299); as a reward it keeps text fluent beside rewards that do
not see fluency, and its inverse is a probability by token, so that it lies between 0 and 1. We differ: the score is
1 / perplexity, the geometric mean of the tokens' probabilities given the prompt, or its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.text import is_conversational, render, to_text
from posttrain_plugins.types import Prompt

__all__ = ["Perplexity"]


@dataclass
class Perplexity:
    """Score completions by a causal language model.

    The model is loaded at the first call; until then the reward can be pickled, and a pickle never holds the model.

    Args:
        model_name_or_path: a folder, a PEFT adapter's too, or a Hub id.
        log: give the mean log-probability of a token, minus the logarithm of the perplexity, instead.
        batch_size: completions per forward.
        max_length: tokens of prompt and completion at most, cut on the left, so that the completion stays.
        dtype: of the weights; this and the rest as in TRL's `ModelConfig`.
        load_in_4bit: quantize the base with bitsandbytes.
        load_in_8bit: the same with 8 bits.
        bnb_4bit_quant_type: `nf4` or `fp4`.
        use_bnb_nested_quant: quantize the quantization constants too.
        attn_implementation: attention kernel.
        model_revision: of a Hub id.
        device: by default `cuda` where there is one.
    """

    __name__ = "perplexity"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    holds_model: ClassVar[bool] = True
    example_params: ClassVar[dict[str, Any]] = {"model_name_or_path": "tiny:model", "max_length": 128}
    tolerance: ClassVar[float] = 1e-5  # padding to the longest row of a batch moves the last bits
    expected_failures: ClassVar[dict[str, str]] = {
        "check_both_formats": "a chat template stands around messages, so the model reads another text",
    }

    model_name_or_path: str
    log: bool = False
    batch_size: int = 16
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
        self._model: Any = None
        self._tokenizer: Any = None

    @property
    def bounds(self) -> tuple[float, float]:
        """From 0 to 1; of the logarithm, everything below 0."""
        return (-math.inf, 0.0) if self.log else (0.0, 1.0)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_tokenizer": None}  # loaded again where it is unpickled

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores; None for an empty completion."""
        pairs = self._encode(prompts, completions)
        order = sorted((i for i, (_, tail) in enumerate(pairs) if tail), key=lambda i: len(pairs[i][0] + pairs[i][1]))
        scores: list[float | None] = [None] * len(pairs)  # no token has no mean
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, mean in zip(batch, self._means([pairs[i] for i in batch]), strict=True):
                scores[i] = mean if self.log else math.exp(mean)
        return scores

    def count_tokens(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """Count the tokens that scoring these reads."""
        return sum(len(head) + len(tail) for head, tail in self._encode(prompts, completions))

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        self._model = None

    def _encode(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of each prompt and of each completion, cut to `max_length` together."""
        if self._tokenizer is None:
            from posttrain_plugins.models.load import load_tokenizer

            self._tokenizer = load_tokenizer(self.model_name_or_path, vars(self))
        tokenizer = self._tokenizer
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        pairs = []
        for prompt, completion in zip(prompts, completions, strict=True):
            # Apart, as the policy had them: a token across the border would be of neither. A chat template writes BOS
            # itself; before plain text the tokenizer has to, as in training.
            is_plain = not is_conversational(prompt)
            head = list(tokenizer(text=render(tokenizer, prompt), add_special_tokens=is_plain)["input_ids"])
            tail = list(tokenizer(text=to_text(completion), add_special_tokens=False)["input_ids"])
            head = head or [begin]  # the first token's probability needs something before it
            excess = 0 if self.max_length is None else max(0, len(head) + len(tail) - self.max_length)
            pairs.append((head[min(excess, len(head) - 1) :], tail[: self.max_length]))
        return pairs

    def _means(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[float]:
        """Yield the mean log-probability of each completion's tokens."""
        import torch

        if self._model is None:
            from posttrain_plugins.models.load import load_model

            self._model = load_model(self.model_name_or_path, vars(self), self.device).eval()
        lengths = [len(head) + len(tail) for head, tail in pairs]
        rows = [head + tail + [0] * (max(lengths) - n) for (head, tail), n in zip(pairs, lengths, strict=True)]
        mask = [[1] * n + [0] * (max(lengths) - n) for n in lengths]  # padded on the right: no position moves
        ids = torch.tensor(rows, device=self._model.device)  # (B, T)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=torch.tensor(mask, device=ids.device)).logits
        for i, (head, _) in enumerate(pairs):
            at = slice(len(head) - 1, lengths[i] - 1)  # what stands at a token says what the next one should be
            # Row by row: the log-softmax of all would be the whole batch in float32, (B, T, V).
            found = logits[i, at].float().log_softmax(-1).gather(-1, ids[i, len(head) : lengths[i], None])
            yield float(found.mean())
