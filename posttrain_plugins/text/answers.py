r"""Read answers from completions, bring them to one form, compare them, and put them to the vote.

Rewards and strategies share these functions, so a vote and a reward never disagree about what is equal. No paper.

Example:
    >>> extract("so 3 + 4 = 7. <answer>7</answer>")
    '7'
    >>> equivalent("0.5", r"\frac{1}{2}")
    True
    >>> majority(["7", None, "8", "8.0"])
    2
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

from posttrain_plugins.text.equivalence import is_mathematically_equal
from posttrain_plugins.types import Candidate, Completion, Result

__all__ = [
    "candidates",
    "canonical",
    "choose",
    "equivalent",
    "extract",
    "majority",
    "score_answer",
    "sortable",
    "tally",
    "vote_weights",
]

MAX_COMPARED_CHARS = 200  # longer answers are compared as text alone: computer algebra may take for ever on them

_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(  # "answer is", "final answer" or "####"; a set in front of them is what `re` finds fast
    r"(?-i:[aAfF#])(?:(?<=a)nswer is|(?<=f)inal answer|(?<=#)###)[ \t]*:?\s*([^\n]+)", re.IGNORECASE
)
_SHORT_LINE = re.compile(r"[\w$+\-.][\w$%,./+\- ]{0,23}")
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?)(?:/(\d+))?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed)\{([^{}]*)\}")
_NOISE = re.compile(r"\\left|\\right|\\[!,;:() ]|\\%|[$%]")


# --- From text to answer ---------------------------------------------------------------------------------------------


def extract(text: str) -> str | None:
    r"""Read the answer from a completion.

    The first of these that is there: the last `<answer>...</answer>`; the last `\boxed{...}`; what follows the last
    "answer is", "####" or "Final Answer:" on its line; the last line, if it is short (a number, a word or two).

    Args:
        text: any text; nothing makes it raise.

    Returns:
        The answer as written, or None where there is none.

    Example:
        >>> extract("<think>3|7=4</think><answer>4</answer>")
        '4'
        >>> extract("3|7=4;4>2=4\n4")
        '4'
        >>> extract("3|7=4;4>") is None
        True
    """
    return _tagged(text) or _boxed(text) or _announced(text) or _last_line(text)


def _tagged(text: str) -> str | None:
    found = _TAG.findall(text)
    return found[-1].strip() if found else None


def _boxed(text: str) -> str | None:
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i].strip()
    return None


def _announced(text: str) -> str | None:
    found = _PHRASE.findall(text)
    return found[-1].strip(" \t*").removesuffix(".").strip() if found else None


def _last_line(text: str) -> str | None:
    line = text.strip().rpartition("\n")[2].strip()
    return line.removesuffix(".") if _SHORT_LINE.fullmatch(line) and line.count(" ") < 3 else None


# --- One form, and equality ------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def canonical(answer: str) -> str:
    r"""Bring an answer to one form: numbers as fractions, text in lower case without decoration.

    Example:
        >>> canonical("$1,000.50$"), canonical(r"\frac{2}{4}"), canonical(r" \text{Paris}. ")
        ('2001/2', '1/2', 'paris')
    """
    text = _NOISE.sub("", _WRAPPER.sub(r"\1", answer))
    text = _FRACTION.sub(r"\1/\2", text)
    text = " ".join(text.lower().split()).removesuffix(".")
    return _as_fraction(_THOUSANDS.sub("", text)) or text


def equivalent(a: str, b: str) -> bool:
    """Return True where two answers mean the same: equal in canonical form, or by `math_verify`, if it is installed.

    It returns within seconds, whatever the answers are and whatever thread asks (`text/equivalence.py`).
    """
    first, second = canonical(a), canonical(b)
    return first == second or _is_equal(first, second)


def score_answer(text: str, reference: str | None) -> float | None:
    """Return 1.0 where the answer in a text is the reference, and 0.0 where it is not or there is none.

    Returns:
        None without a reference: a completion that nothing is known of is not a wrong one.

    Example:
        >>> [score_answer(text, "4") for text in ("<answer>4.0</answer>", "no idea")], score_answer("4", None)
        ([1.0, 0.0], None)
    """
    if reference is None:
        return None
    answer = extract(text)
    return float(answer is not None and equivalent(answer, str(reference)))


def _as_fraction(text: str) -> str | None:
    match = _NUMBER.fullmatch(text.replace(" ", ""))
    if match is None or len(text) > MAX_COMPARED_CHARS:
        return None
    denominator = int(match[2] or 1)
    return str(Fraction(match[1]) / denominator) if denominator else None


def _is_equal(a: str, b: str) -> bool:
    # In one order: `math_verify` is not symmetric, and a vote must not depend on which answer came first.
    return _mathematically_equal(min(a, b), max(a, b))


@lru_cache(maxsize=65536)
def _mathematically_equal(a: str, b: str) -> bool:
    both_numbers = all(re.fullmatch(r"-?\d+(/\d+)?", text) for text in (a, b))
    if both_numbers or not (a and b) or max(len(a), len(b)) > MAX_COMPARED_CHARS:
        return False
    return is_mathematically_equal(a, b)


# --- The vote --------------------------------------------------------------------------------------------------------


def majority(answers: Sequence[Hashable | None], weights: Sequence[float] | None = None) -> int | None:
    """Find the first member of the class of equivalent answers that has the most votes.

    Args:
        answers: one per voter; None abstains.
        weights: what each vote counts; 1 by default.

    Returns:
        An index into `answers`, or None where all abstain; of equal classes the one seen first wins.

    Example:
        >>> majority(["a", "b", "B", None])
        1
        >>> majority(["a", "b", "B"], weights=[3.0, 1.0, 1.0])
        0
    """
    votes = tally(answers, weights)
    return max(votes, key=votes.__getitem__) if votes else None


def tally(answers: Sequence[Hashable | None], weights: Sequence[float] | None = None) -> dict[int, float]:
    """Count the votes of each class of equivalent answers, by the index of its first member, in the order of these.

    Args:
        answers: one per voter; None abstains.
        weights: what each vote counts; 1 by default.

    Example:
        >>> tally(["a", "b", "B", None])
        {0: 1.0, 1: 2.0}
    """
    first: dict[str, int] = {}  # the canonical form of a class's first member -> its index
    votes: dict[int, float] = {}
    for i, answer in enumerate(answers):
        if answer is None:
            continue
        key = canonical(str(answer))
        # Only a new form is compared with the others as mathematics, which takes milliseconds and not microseconds.
        form = key if key in first else next((other for other in first if _is_equal(other, key)), key)
        member = first.setdefault(form, i)
        votes[member] = votes.get(member, 0.0) + (1.0 if weights is None else weights[i])
    return votes


def vote_weights(scores: Sequence[float | None]) -> list[float]:
    """Turn scores into weights of votes: through a sigmoid where one of them is negative, and so a logit.

    Args:
        scores: one per voter; None and NaN weigh nothing.

    Example:
        >>> vote_weights([0.25, None]), vote_weights([0.0, -1000.0])
        ([0.25, 0.0], [0.5, 0.0])
    """
    is_logit = any(score is not None and score < 0 for score in scores)
    # by tanh: `1 / (1 + exp(-s))` overflows on a logit below about -709
    return [0.0 if s is None or math.isnan(s) else (1 + math.tanh(s / 2)) / 2 if is_logit else s for s in scores]


def sortable(score: float | None) -> float:
    """Return the score, or minus infinity for one that could not be told: None and NaN.

    Example:
        >>> max([None, -2.0, float("nan")], key=sortable)
        -2.0
    """
    # a NaN compares as false with everything, so a sort with one in it has no order
    return -math.inf if score is None or math.isnan(score) else score


# --- From completions to a result ------------------------------------------------------------------------------------


def candidates(completions: Iterable[Completion]) -> list[Candidate]:
    """Return the completions with their extracted answers, without the samples that failed."""
    return [
        Candidate(completion.text, extract(completion.text), finish_reason=completion.finish_reason)
        for completion in completions
        if completion.finish_reason != "error"
    ]


def choose(among: list[Candidate], index: int | None) -> Result:
    """Make the result that answers with one of the candidates: the first where `index` is None; without any, none."""
    if not among:
        return Result(answer=None, text="")
    chosen = among[index or 0]
    return Result(answer=chosen.answer, text=chosen.text, candidates=among)
