"""`bleu`: how many n-grams of the reference text stand in the completion.

Papers: Papineni et al., 2002 (https://aclanthology.org/P02-1040); sentence BLEU as sacrebleu computes it, with its
default smoothing and effective order (Post, 2018, https://huggingface.co/papers/1804.08771), divided by 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from posttrain_plugins.errors import importing_extra
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["BLEU"]


@dataclass
class BLEU:
    """Compare each completion with the text in the column `solution`.

    Args:
        max_ngram_order: n-grams up to this size.
        lowercase: compare without case.
        tokenize: sacrebleu's tokenizer: `13a`, `zh`, `char`, `intl`, `none` and others.

    Raises:
        InputError: sacrebleu is not installed.

    Example:
        >>> [round(s, 3) for s in BLEU()(completions=["the cat sat down", "a dog"], solution=["the cat sat down"] * 2)]
        [1.0, 0.0]
    """

    __name__ = "bleu"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("solution",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "?", "completion": "the cat sat on the mat", "solution": "the cat sat on the mat", "score": 1.0},
        {"prompt": "?", "completion": "dogs bark", "solution": "the cat sat on the mat", "score": 0.0},
        {"prompt": "?", "completion": "", "solution": "the cat sat on the mat", "score": 0.0},
    )

    max_ngram_order: int = 4
    lowercase: bool = False
    tokenize: str = "13a"

    def __call__(self, completions: Sequence[Prompt], solution: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where there is no reference.

        Args:
            solution: B reference texts, or lists of several; None where there is none.
        """
        # Sentences, not a corpus: a reward is of one completion, and a mean of it over a batch says the rest.
        metric = _metric(self.max_ngram_order, self.lowercase, self.tokenize)
        scores: list[float | None] = []
        for completion, given in zip(completions, solution, strict=True):
            references = [given] if isinstance(given, str) else given
            found = None if given is None else metric.sentence_score(to_text(completion), list(references)).score
            scores.append(None if found is None else min(1.0, float(found) / 100))  # 100.00000000000004 for equal texts
        return scores


@cache  # a tokenizer such as `flores200` is loaded with it
def _metric(max_ngram_order: int, lowercase: bool, tokenize: str) -> Any:
    with importing_extra("bleu", "sacrebleu", "text"):
        from sacrebleu.metrics import bleu
    options = {"max_ngram_order": max_ngram_order, "lowercase": lowercase, "tokenize": tokenize}
    # Without the effective order a completion of three words is worth nothing: it has no 4-gram.
    return bleu.BLEU(**options, effective_order=True)
