"""`rouge`: how much of the reference text is there again, by words, pairs of words, or the longest common sequence.

Paper: Lin, 2004 (https://aclanthology.org/W04-1013), as `rouge-score` computes it; the usual reward of summaries before
reward models (https://huggingface.co/papers/1705.04304).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from posttrain_plugins.errors import importing_extra
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["ROUGE"]


@dataclass
class ROUGE:
    """Compare each completion with the text in the column `solution`.

    Args:
        kind: `rouge1`, `rouge2`, `rougeL` or `rougeLsum`.
        measure: `fmeasure`, `precision` or `recall`.
        use_stemmer: compare stems of English words.

    Raises:
        InputError: rouge-score is not installed.

    Example:
        >>> ROUGE("rouge1")(completions=["the cat sat", "a dog"], solution=["the cat sat", "the cat sat"])
        [1.0, 0.0]
    """

    __name__ = "rouge"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("solution",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "?", "completion": "the cat sat on the mat", "solution": "the cat sat on the mat", "score": 1.0},
        {"prompt": "?", "completion": "dogs bark", "solution": "the cat sat on the mat", "score": 0.0},
        {"prompt": "?", "completion": "", "solution": "the cat sat on the mat", "score": 0.0},
    )

    kind: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL"
    measure: Literal["fmeasure", "precision", "recall"] = "fmeasure"
    use_stemmer: bool = False

    def __call__(self, completions: Sequence[Prompt], solution: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where there is no reference.

        Args:
            solution: B reference texts, or lists of several, of which the nearest counts; None where there is none.
        """
        scorer = _scorer(self.kind, self.use_stemmer)
        scores: list[float | None] = []
        for completion, given in zip(completions, solution, strict=True):
            references = [given] if isinstance(given, str) else given
            found = [scorer.score(one, to_text(completion))[self.kind] for one in references or ()]
            # Of several references the nearest counts, as in section 2.1 of the paper.
            best = max((float(getattr(one, self.measure)) for one in found), default=None)
            scores.append(best)
        return scores


@cache
def _scorer(kind: str, use_stemmer: bool) -> Any:
    with importing_extra("rouge", "rouge-score", "text"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer([kind], use_stemmer=use_stemmer)
