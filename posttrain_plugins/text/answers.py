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
from collections.abc import Hashable, Iterable, Sequence

from posttrain_plugins.text.readers import read, read_reference, without_thought
from posttrain_plugins.types import Candidate, Completion, Result

__all__ = [
    "candidates",
    "canonical",
    "choose",
    "compare_answer",
    "equivalent",
    "extract",
    "is_vote_empty",
    "majority",
    "score_answer",
    "sortable",
    "tally",
    "vote_weights",
]


# How answers are compared is imported with the first comparison: its patterns take 80 ms to compile, and whoever checks
# a recipe imports this file and compares nothing.


def canonical(answer: str) -> str:
    r"""Write an answer in one form: numbers as fractions, expressions sorted, words in lower case.

    Answers of one form are equal; equal answers may have several forms, which `equivalent` compares.

    Example:
        >>> canonical("$1,000.50$"), canonical(r"\frac{2}{4}"), canonical(r" \text{Paris}. ")
        ('2001/2', '1/2', 'paris')
    """
    from posttrain_plugins.text import equality

    return equality.canonical(answer)


def equivalent(a: str, b: str) -> bool:
    r"""Return whether two answers mean the same (`docs/answers.md`).

    Numbers are compared exactly. Roots, powers and functions are compared by computer algebra; this takes milliseconds,
    ends within seconds and works in any thread (`text/equivalence.py`).

    Example:
        >>> equivalent("0.5", r"\frac{1}{2}"), equivalent("3 4", "34"), equivalent("(B) Paris", "B")
        (True, False, True)
    """
    if a == b:
        return True
    from posttrain_plugins.text import equality

    return equality.equivalent(a, b)


def extract(text: str, reader: str | None = None, prompt: object = None) -> str | None:
    r"""Read the answer from a completion (`text/readers.py` has the readers and what they read).

    Args:
        text: any text; nothing makes it raise.
        reader: how it is read; by default as the stage that asks says, else `auto`.
        prompt: what the completion follows, as text or messages: a thought that it opens goes on in the completion.

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
    return read(text, reader, prompt)


def score_answer(text: str, reference: str | None, reader: str = "auto", prompt: object = None) -> float | None:
    """Return 1.0 where the answer in a text is the reference, and 0.0 where it is not or none can be read.

    To the reader `auto`, a completion that is its reference word for word is right, whatever can be read of it.

    Args:
        text: a completion.
        reference: the answer, or a worked solution with its answer in a box, a tag or behind "####".
        reader: as of `extract`.
        prompt: as of `extract`.

    Returns:
        None without a reference: a completion that nothing is known of is not a wrong one.

    Example:
        >>> [score_answer(text, "4") for text in ("<answer>4.0</answer>", "no idea")], score_answer("4", None)
        ([1.0, 0.0], None)
    """
    return compare_answer(read(text, reader, prompt), text, reference, reader, prompt)


def compare_answer(
    answer: str | None, text: str, reference: str | None, reader: str = "auto", prompt: object = None
) -> float | None:
    """Do as `score_answer` with the answer that was read from the text already."""
    if reference is None:
        return None
    if answer is not None and equivalent(answer, read_reference(reference)):
        return 1.0
    visible = without_thought(text, prompt) if reader == "auto" else None
    return float(visible is not None and visible.split() == str(reference).split() != [])


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
    first: dict[str, int] = {}  # the answer of a class's first member -> its index
    seen: dict[str, str] = {}  # a canonical form -> the answer of its class
    votes: dict[int, float] = {}
    for i, answer in enumerate(answers):
        if answer is None:
            continue
        text = str(answer)
        form = canonical(text)
        # Only a new form is compared with the others, which may take algebra, and so milliseconds.
        member = seen.get(form) or next((other for other in first if equivalent(other, text)), text)
        seen[form] = member
        index = first.setdefault(member, i)
        votes[index] = votes.get(index, 0.0) + (1.0 if weights is None else weights[i])
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


def is_vote_empty(result: Result) -> bool:
    """Return whether a result was to be chosen among several candidates, and none of them has an answer to vote for.

    Example:
        >>> is_vote_empty(Result(None, "", candidates=[Candidate("hm", None), Candidate("hm", None)]))
        True
    """
    among = result.candidates
    return len(among) > 1 and result.answer is None and all(one.answer is None for one in among)


def choose(among: list[Candidate], index: int | None) -> Result:
    """Make the result that answers with one of the candidates: the first where `index` is None; without any, none."""
    if not among:
        return Result(answer=None, text="")
    chosen = among[index or 0]
    return Result(answer=chosen.answer, text=chosen.text, candidates=among)
