r"""Say whether two answers mean the same. The decisions, with examples: `docs/answers.md`.

Two answers are equal where the same thing stands on both sides (`answer_kinds.py`); where that cannot be decided they
are not equal, so that a reward never pays on a guess. No paper.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, TypeAlias

from posttrain_plugins.text import equivalence
from posttrain_plugins.text.answer_kinds import Answer, Choice, Matrix, Quantity, Relation, Sequence, Words, parse
from posttrain_plugins.text.expressions import Expression, is_equal, read

__all__ = ["canonical", "compare", "equivalent"]

# "algebra": equal only if a computer algebra system says so
Verdict: TypeAlias = Literal["equal", "different", "algebra"]

_INTEGER = re.compile(r"-?[1-9]\d{0,17}|0")


def equivalent(a: str, b: str) -> bool:
    """Return whether two answers mean the same; see `answers.equivalent`."""
    if a == b:
        return True
    if _INTEGER.fullmatch(a) and _INTEGER.fullmatch(b):  # most answers
        return False
    verdict = _verdict(*sorted((a, b)))
    if verdict == "algebra":
        return is_algebra_equal(*sorted((a, b)))
    return verdict == "equal"


@lru_cache(maxsize=65536)
def is_algebra_equal(a: str, b: str) -> bool:
    """Return whether computer algebra finds two answers equal, expression by expression; False where it is missing."""
    return compare(parse(a), parse(b), by_algebra=True) == "equal"


@lru_cache(maxsize=65536)
def _verdict(a: str, b: str) -> Verdict:
    return compare(parse(a), parse(b))


@lru_cache(maxsize=8192)
def canonical(answer: str) -> str:
    """Write an answer in one form; see `answers.canonical`."""
    return _form(parse(answer))


def _form(answer: Answer) -> str:
    match answer:
        case Expression():
            return answer.key
        case Words():
            return answer.text
        case Quantity():
            key, unit = answer.value.key, answer.unit
            return f"{key} {unit}" if unit[0].isalpha() else f"{unit}{key}"
        case Choice():
            return answer.letter if answer.rest is None else f"({answer.letter}) {_form(answer.rest)}"
        case Sequence():
            items = [_form(item) for item in answer.items]
            inside = ", ".join(sorted(set(items)) if answer.brackets == "{}" else items)
            brackets = answer.brackets or "()"
            return f"{brackets[0]}{inside}{brackets[1]}"
        case Matrix():
            return "; ".join(", ".join(map(_form, row)) for row in answer.rows)
        case Relation():
            return f"{_form(answer.left)} {answer.sign} {_form(answer.right)}"


# --- Comparing -------------------------------------------------------------------------------------------------------


def compare(a: Answer, b: Answer, by_algebra: bool = False) -> Verdict:
    """Compare two answers by what they are.

    Args:
        a: one answer.
        b: the other; the order does not matter.
        by_algebra: ask computer algebra about expressions that are not equal as quotients.
    """
    if type(a) is not type(b):
        return _compare_kinds(a, b, by_algebra)
    match a, b:
        case Expression(), Expression():
            return _compare_expressions(a, b, by_algebra)
        case Words(), Words():
            return "equal" if a.text == b.text else "different"
        case Quantity(), Quantity():
            return _compare_expressions(a.value, b.value, by_algebra) if a.unit == b.unit else "different"
        case Choice(), Choice():
            if a.letter.upper() != b.letter.upper():
                return "different"
            return compare(a.rest, b.rest, by_algebra) if a.rest is not None and b.rest is not None else "equal"
        case Sequence(), Sequence():
            return _compare_sequences(a, b, by_algebra)
        case Matrix(), Matrix():
            if [len(row) for row in a.rows] != [len(row) for row in b.rows]:
                return "different"
            pairs = [
                (x, y) for first, second in zip(a.rows, b.rows, strict=True) for x, y in zip(first, second, strict=True)
            ]
            return _all_of([compare(x, y, by_algebra) for x, y in pairs])
        case Relation(), Relation():
            if a.sign != b.sign:
                return "different"
            return _all_of([compare(a.left, b.left, by_algebra), compare(a.right, b.right, by_algebra)])
    raise AssertionError("unreachable")


def _compare_kinds(a: Answer, b: Answer, by_algebra: bool) -> Verdict:
    """Compare answers of two kinds: what may be left out on one side is a name, a unit, a letter or its text."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Relation) and one.sign == "=" and isinstance(one.left, Words | Choice):
            is_named = not isinstance(one.left, Words) or one.left.text.startswith("\0")
            return compare(one.right, other, by_algebra) if is_named else "different"
        if isinstance(one, Quantity) and isinstance(other, Expression):
            return _compare_expressions(one.value, other, by_algebra)
        if isinstance(one, Choice):
            if one.rest is not None:
                return compare(one.rest, other, by_algebra)
            name = read(one.letter)  # B is a choice, x a name
            is_same = isinstance(other, Expression) and name is not None and is_equal(name, other)
            return "equal" if is_same else "different"
    return "different"


def _compare_expressions(a: Expression, b: Expression, by_algebra: bool) -> Verdict:
    if is_equal(a, b):
        return "equal"
    if (a.number is not None and b.number is not None) or (a.is_settled and b.is_settled):
        return "different"
    if by_algebra:
        return "equal" if equivalence.is_mathematically_equal(a.tree, b.tree) else "different"
    return "algebra"


def _compare_sequences(a: Sequence, b: Sequence, by_algebra: bool) -> Verdict:
    if a.brackets != b.brackets:
        return "different"
    if a.brackets != "{}":
        if len(a.items) != len(b.items):
            return "different"
        return _all_of([compare(x, y, by_algebra) for x, y in zip(a.items, b.items, strict=True)])
    # Each element of a set must stand in the other one, in any order and however often.
    verdicts = [_any_of([compare(x, y, by_algebra) for y in b.items]) for x in a.items]
    return _all_of(verdicts + [_any_of([compare(x, y, by_algebra) for x in a.items]) for y in b.items])


def _all_of(verdicts: list[Verdict]) -> Verdict:
    return "different" if "different" in verdicts else "algebra" if "algebra" in verdicts else "equal"


def _any_of(verdicts: list[Verdict]) -> Verdict:
    return "equal" if "equal" in verdicts else "algebra" if "algebra" in verdicts else "different"
