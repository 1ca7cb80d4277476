"""`calculator`: arithmetic for models that cannot do it in their heads, the tool of GSM8K's calculator annotations.

Paper: Cobbe et al., 2021 (https://huggingface.co/papers/2110.14168), section 3.1.

1. An expression is parsed and never evaluated as Python: names, calls and attributes have no meaning here.
2. Integers and fractions of integers are exact; what is no whole number is written with at most 12 digits.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

__all__ = ["calculator"]

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
MAX_CHARS = 400
MAX_BITS = 4096  # of a numerator or denominator; a power of powers would never end
WRITTEN = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "^": " ** "})


def calculator(expression: str) -> str:
    """Calculate an arithmetic expression.

    Args:
        expression: numbers with + - * / // % ** and brackets, such as (12 + 7) * 3.

    Returns:
        The number.

    Raises:
        ValueError: it is no arithmetic expression, or its value is too large.

    Example:
        >>> calculator("(12 + 7) * 3"), calculator("1/3 + 1/6"), calculator("2 / 3")
        ('57', '0.5', '0.666666666667')
    """
    if len(expression) > MAX_CHARS:
        raise ValueError(f"the expression has {len(expression)} characters, at most {MAX_CHARS} are calculated")
    try:
        value = _value(ast.parse(expression.translate(WRITTEN).strip(), mode="eval").body)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{expression!r} is no arithmetic expression") from None
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.12g}"
    except OverflowError:
        raise ValueError("the value is too large") from None


# as in every plugin, what a conformance check may try
calculator.examples = (  # type: ignore[attr-defined]
    {"arguments": {"expression": "123 * 45"}, "answer": "5535"},
    {"arguments": {"expression": "2 ** 0.5"}, "answer": "1.41421356237"},
)


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(bool()):
            pass
        case ast.Constant(int(number)):
            return _bounded(Fraction(number))
        case ast.Constant(float(number)):
            return _bounded(Fraction(repr(number)))  # 0.1 is a tenth, and not the nearest binary fraction
        case ast.UnaryOp(ast.USub(), inner):
            return -_value(inner)
        case ast.UnaryOp(ast.UAdd(), inner):
            return _value(inner)
        case ast.BinOp(base, ast.Pow(), exponent):
            return _power(_value(base), _value(exponent))
        case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
            return _bounded(Fraction(OPERATORS[type(sign)](_value(left), _value(right))))
    raise ValueError(f"{ast.unparse(node)!r} is no arithmetic: numbers, + - * / // % ** and brackets are")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
        if bits > MAX_BITS:
            raise ValueError("the value is too large")
        return base**exponent.numerator
    if base < 0:
        raise ValueError("a root of a negative number")
    try:
        return _bounded(Fraction(float(base) ** float(exponent)))
    except OverflowError:
        raise ValueError("the value is too large") from None


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ValueError("the value is too large")
    return value
