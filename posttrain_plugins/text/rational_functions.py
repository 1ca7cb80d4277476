r"""Compute with quotients of polynomials that have rational coefficients: what expressions are compared by.

What is no rational function (roots, `e^x`, sines) stands in them as a name of its own, made of its operator and the
values of its arguments. Two expressions that agree as quotients therefore agree whatever these names mean. No paper.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Expression", "Polynomial", "Tree", "Unreadable", "evaluate", "is_equal"]

MAX_BITS = 100_000  # of an integer that is computed; a larger power stands as it is written
MAX_TERMS = 400

# Fraction | str (a name) | (operator, Tree, ...) with an operator of "+ * / ^ ! root abs binom" or a function's name
Tree: TypeAlias = Any
# names with their exponents -> coefficient
Polynomial: TypeAlias = dict[tuple[tuple[str, int], ...], Fraction]

_HUGE = re.compile(r"\^\(.*,(?:-?\d+|\^\(.*\))\)")  # an integer power that `evaluate` left as it was written


class Unreadable(ValueError):
    """Say that a text is no expression, or one with two readings."""


class Expression(NamedTuple):
    """Hold what was read: the tree as written, and its value as a quotient of polynomials."""

    tree: Tree
    numerator: Polynomial
    denominator: Polynomial

    @property
    def number(self) -> Fraction | None:
        """The value, where it is a rational number."""
        if set(self.numerator) <= {()} and set(self.denominator) == {()}:
            return self.numerator.get((), Fraction(0)) / self.denominator[()]
        return None

    @property
    def key(self) -> str:
        """A text that only equal expressions share; not all that are equal share it."""
        scale = next(iter(sorted(self.denominator.items())))[1]
        top, bottom = (_as_text({m: c / scale for m, c in p.items()}) for p in (self.numerator, self.denominator))
        return top if bottom == "1" else f"({top})/({bottom})"

    @property
    def is_settled(self) -> bool:
        """Whether computer algebra has nothing to add: it is a rational function, or a power too large to compute."""
        names = {name for p in (self.numerator, self.denominator) for monomial in p for name, _ in monomial}
        is_known = not any("(" in name or name in ("\\pi", "e", "i") for name in names)
        return is_known or any(_HUGE.fullmatch(name) for name in names)


def is_equal(a: Expression, b: Expression) -> bool:
    """Return whether two expressions are the same quotient; where both are defined, they then have equal values."""
    if a.number is not None and b.number is not None:
        return a.number == b.number
    try:
        return _product(a.numerator, b.denominator) == _product(b.numerator, a.denominator)
    except Unreadable:
        return False


def evaluate(tree: Tree) -> tuple[Polynomial, Polynomial]:
    """Return the numerator and the denominator of a tree.

    Raises:
        Unreadable: it has more than MAX_TERMS terms.
        ZeroDivisionError: it has no value.
    """
    one: Polynomial = {(): Fraction(1)}
    if isinstance(tree, Fraction):
        return ({(): tree} if tree else {}), one
    if isinstance(tree, str):
        return {((tree, 1),): Fraction(1)}, one
    operator, *rest = tree
    values = [evaluate(branch) for branch in rest]
    if operator in "+*/":
        (a, b), (c, d) = values
        if operator == "*":
            return _product(a, c), _product(b, d)
        if operator == "/":
            if not c:
                raise ZeroDivisionError
            return _product(a, d), _product(b, c)
        return _sum(_product(a, d), _product(c, b)), _product(b, d)
    exact = _exactly(operator, values)
    return exact if exact is not None else ({((_opaque(operator, rest), 1),): Fraction(1)}, one)


def _exactly(operator: str, values: list[tuple[Polynomial, Polynomial]]) -> tuple[Polynomial, Polynomial] | None:
    """Return the value of a power, root, factorial or modulus that is a quotient itself, else None."""
    one: Polynomial = {(): Fraction(1)}
    numbers = [Expression(None, *value).number for value in values]
    result: Fraction | None = None
    last = numbers[-1]
    if operator == "^" and last is not None and last.denominator == 1:
        return _power(values[0], numbers[0], int(last))
    if operator == "root" and numbers[0] is not None and last is not None:
        result = _exact_root(numbers[0], int(last)) if last.denominator == 1 else None
    elif operator == "abs" and last is not None:
        result = abs(last)
    elif operator == "!" and last is not None and last.denominator == 1 and 0 <= last <= 4000:
        result = Fraction(math.factorial(int(last)))
    elif operator == "binom" and all(n is not None and n.denominator == 1 and 0 <= n <= 4000 for n in numbers):
        result = Fraction(math.comb(int(numbers[0] or 0), int(numbers[1] or 0)))
    return None if result is None else (({(): result} if result else {}), one)


def _power(
    base: tuple[Polynomial, Polynomial], number: Fraction | None, exponent: int
) -> tuple[Polynomial, Polynomial] | None:
    top, bottom = base if exponent >= 0 else base[::-1]
    if not bottom or (exponent == 0 and not top):  # 0^-1 and 0^0
        raise ZeroDivisionError
    size = abs(exponent)
    if number is not None:
        bits = max(number.numerator.bit_length(), number.denominator.bit_length())
        if bits * size > MAX_BITS:
            return None
        value = number**exponent
        return ({(): value} if value else {}), {(): Fraction(1)}
    is_monomial = len(top) == len(bottom) == 1
    if size > (1000 if is_monomial else 16):
        return None
    result: tuple[Polynomial, Polynomial] = ({(): Fraction(1)}, {(): Fraction(1)})
    for _ in range(size):
        result = _product(result[0], top), _product(result[1], bottom)
    return result


def _exact_root(number: Fraction, degree: int) -> Fraction | None:
    if number < 0 and degree % 2:  # the real one
        root = _exact_root(-number, degree)
        return None if root is None else -root
    if number < 0 or not 2 <= degree <= 64 or max(number.numerator, number.denominator).bit_length() > 4096:
        return None
    parts = []
    for part in (number.numerator, number.denominator):
        low, high = 0, 1 << (part.bit_length() // degree + 1)
        while low < high:  # the largest integer whose power is not above: floats are too coarse
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= part else (low, middle - 1)
        if low**degree != part:
            return None
        parts.append(low)
    return Fraction(*parts)


def _opaque(operator: str, branches: list[Tree]) -> str:
    """Name what is no quotient by its operator and the values of its arguments, so that equal ones share a name."""
    return f"{operator}({','.join(Expression(None, *evaluate(branch)).key for branch in branches)})"


def _product(p: Polynomial, q: Polynomial) -> Polynomial:
    if p == {(): 1}:
        return q
    if q == {(): 1}:
        return p
    if len(p) * len(q) > 20 * MAX_TERMS:  # of what is multiplied out, many would be equal
        raise Unreadable
    result: Polynomial = {}
    for a, first in p.items():
        for b, second in q.items():
            exponents = dict(a)
            for name, exponent in b:
                exponents[name] = exponents.get(name, 0) + exponent
            monomial = tuple(sorted(exponents.items()))
            result[monomial] = result.get(monomial, Fraction(0)) + first * second
    return _checked(result)


def _sum(p: Polynomial, q: Polynomial) -> Polynomial:
    result = dict(p)
    for monomial, coefficient in q.items():
        result[monomial] = result.get(monomial, Fraction(0)) + coefficient
    return _checked(result)


def _checked(p: Polynomial) -> Polynomial:
    result = {monomial: coefficient for monomial, coefficient in p.items() if coefficient}
    bits = max((max(c.numerator.bit_length(), c.denominator.bit_length()) for c in result.values()), default=0)
    if len(result) > MAX_TERMS or bits > 4 * MAX_BITS:
        raise Unreadable
    return result


def _as_text(p: Polynomial) -> str:
    terms = []
    for monomial, coefficient in sorted(p.items()):
        names = "*".join(name if exponent == 1 else f"{name}^{exponent}" for name, exponent in monomial)
        terms.append(names if names and coefficient == 1 else "*".join(filter(None, (_digits(coefficient), names))))
    return "+".join(terms) or "0"


def _digits(number: Fraction) -> str:
    # Python writes no integer of more than 4,300 digits in tens
    large = max(number.numerator.bit_length(), number.denominator.bit_length()) > 10_000
    return f"{number.numerator:#x}/{number.denominator:#x}" if large else str(number)
