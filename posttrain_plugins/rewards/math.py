r"""`math`: 1.0 where the answer in LaTeX is the reference, by computer algebra.

Paper: the accuracy reward of DeepSeek-R1 (https://huggingface.co/papers/2501.12948, section 2.2.2), with the values of
TRL's `accuracy_reward`: `math_verify` reads both sides, a box before any other formula, and a reference that it cannot
read gives None. We differ in how, not in what: 1. numbers in a box are compared by their canonical form, without
computer algebra; 2. equal answers to equal references are judged once in a batch; 3. the rest is asked of processes
that can be killed (`text/equivalence.py`), so that it works in any thread and always ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.text.answers import canonical
from posttrain_plugins.text.equivalence import MAX_WORKERS, is_available, is_right
from posttrain_plugins.types import Prompt

__all__ = ["Math"]

_FORMULA = re.compile(r"\s*\$([^$]*[^$\s][^$]*)\$\s*")
ROUNDING = Fraction(1, 2_000_000)  # math_verify compares six digits behind the point
# Braces within braces once, enough for a fraction; what is deeper goes to math_verify as a whole text.
_BOX = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_NUMBER = re.compile(r"\s*\$?\s*-?\s*(?:\d+(?:\.\d+)?|\\[dt]?frac\{\d+\}\{\d+\}|\d+/\d+)\s*\$?\s*")


@dataclass
class Math:
    r"""Compare the LaTeX answer of each completion with the column `solution`.

    Args:
        limit_s: for one comparison; more time than this is a wrong answer.

    Raises:
        InputError: math_verify is not installed.

    Example:
        >>> Math()(completions=[r"\boxed{\frac{2}{4}}", r"so $x = 3$", "0.5"], solution=["0.5", "0.5", "0.5"])
        [1.0, 0.0, 0.0]
    """

    __name__ = "math"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("solution",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "2+2=?", "completion": r"So it is \boxed{4}.", "solution": "4", "score": 1.0},
        {
            "prompt": "x=?",
            "completion": r"\boxed{\frac{\sqrt{3}}{3}}",
            "solution": r"$\frac{1}{\sqrt{3}}$",
            "score": 1.0,
        },
        {"prompt": "2+2=?", "completion": r"So it is \boxed{5}.", "solution": "4", "score": 0.0},
        {"prompt": "2+2=?", "completion": "4", "solution": "4", "score": 0.0},
        {"prompt": "2+2=?", "completion": r"\boxed{4", "solution": "4", "score": 0.0},
        {"prompt": "2+2=?", "completion": "", "solution": "4", "score": 0.0},
    )

    limit_s: float = 10.0  # reading a long completion counts, too

    def __post_init__(self) -> None:
        if not self.limit_s > 0:
            raise InputError(f"math cannot use limit_s: {self.limit_s}, expected more than 0")

    def __call__(
        self, completions: Sequence[Prompt], solution: Sequence[str | None], **columns: Any
    ) -> list[float | None]:
        """Return B scores, 1.0 or 0.0; None where the reference cannot be read.

        Args:
            solution: B reference answers, LaTeX or plain; None where there is none.
        """
        if not is_available():
            hint = "pip install 'posttrain-plugins[math]'"
            raise InputError("math needs math_verify, which is not installed", hint=hint)
        if not completions:
            return []
        asked = []
        for completion, reference in zip(completions, solution, strict=True):
            # What decides is the box, where there is only one: completions that differ in their reasoning are then
            # equal, and judged once. math_verify divides by 100 what a per cent sign follows, so that keeps its text.
            text = to_text(completion)
            box = _BOX.search(text) if text.count(r"\boxed") == 1 and r"\fbox" not in text else None
            is_decisive = box is not None and "%" not in text[box.end() : box.end() + 8]
            asked.append((box[0] if box is not None and is_decisive else text, reference))
        distinct = list(dict.fromkeys(asked))
        with ThreadPoolExecutor(MAX_WORKERS) as threads:
            scores = dict(zip(distinct, threads.map(self._score, *zip(*distinct, strict=True)), strict=True))
        return [scores[pair] for pair in asked]

    def _score(self, answer: str, solution: str | None) -> float | None:
        if solution is None:
            return None
        known = _without_algebra(answer, str(solution))
        found = is_right(answer, str(solution), self.limit_s) if known is None else known
        return None if found is None else float(found)


def _without_algebra(answer: str, solution: str) -> bool | None:
    """Return what can be told of a box and a reference as they are written; None where it cannot.

    A reference that is a number or one formula can always be read, if only as what is written.
    """
    box, formula = _BOX.fullmatch(answer), _FORMULA.fullmatch(solution)
    is_number = _NUMBER.fullmatch(solution) is not None
    if box is None:  # without LaTeX there is no answer; but a reference that is no number may be unreadable: None
        return False if is_number and not set(answer) & {"\\", "$"} else None
    if formula and box[1].strip() == formula[1].strip():
        return True
    if not (is_number and _NUMBER.fullmatch(box[1])):
        return None
    try:
        return abs(Fraction(canonical(box[1])) - Fraction(canonical(solution))) < ROUNDING
    except (ValueError, ZeroDivisionError):  # 1/0 is for computer algebra
        return None
