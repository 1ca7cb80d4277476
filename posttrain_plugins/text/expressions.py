r"""Read mathematical expressions, as chat models write them in LaTeX or plain text.

An expression is parsed, never rewritten as text: `\frac{x+1}{2}` is (x+1)/2 because its groups say so. A text with two
readings (`1/2x`, `3 4`) has none. How expressions are compared: `rational_functions.py`; what these cannot tell is for
computer algebra (`equivalence.py`). No paper.

Example:
    >>> is_equal(read(r"\frac{n(n+1)}{2}"), read("0.5n^2 + n/2")), read("3 4")
    (True, None)
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from posttrain_plugins.text.rational_functions import Expression, Tree, Unreadable, evaluate, is_equal

__all__ = ["FUNCTIONS", "MAX_CHARS", "Expression", "is_equal", "read"]

MAX_CHARS = 400  # longer texts are no expressions that somebody would compare by hand
MAX_DEPTH = 40

FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp")
)
_GREEK = frozenset(
    re.findall(
        r"\w+",
        """
        alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau
        upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
        """,
    )
)
_DOTS = frozenset(("ldots", "dots", "cdots"))
_FRACTIONS = ("\\frac", "\\dfrac", "\\tfrac", "\\cfrac")
_TIMES = ("*", "\\cdot", "\\times", "\\ast")
# Words of three letters or fewer that stand between answers and make no product of names.
_PROSE = frozenset(
    re.findall(r"\w+", "or and not is are to in if no yes the an of for at by on per all any none its am pm")
)
_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>(?P<whole>\d*)\.(?P<fixed>\d*)\\overline\{(?P<period>\d+)\})"
    r"|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4}(?![\w^{.]))?)"
    r"|(?P<command>\\[A-Za-z]+|\\.)|(?P<letters>[A-Za-z]+)|(?P<symbol>\*\*|\S))",
    re.DOTALL,
)
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?|[!,;: ])(?![A-Za-z])|~")


def read(text: str) -> Expression | None:
    r"""Read one expression.

    Args:
        text: without the dollars around it; at most MAX_CHARS characters.

    Returns:
        None where it is no expression, has two readings or no value (a division by zero).

    Example:
        >>> read(r"1\frac{1}{2}").number, read("2^{10}").number, read("x+1").key, read("1/0")
        (Fraction(3, 2), Fraction(1024, 1), '1+x', None)
    """
    if len(text) > MAX_CHARS:
        return None
    try:
        tree = _Parser(text).whole()
        return Expression(tree, *evaluate(tree))
    except (Unreadable, ZeroDivisionError, RecursionError):
        return None


class _Token(NamedTuple):
    kind: str  # number | command | letters | symbol | end
    text: str
    has_space: bool = False  # in front of it


_END = _Token("end", "")


@lru_cache(maxsize=512)
def _tokens(text: str) -> tuple[_Token, ...]:
    found = []
    for match in _TOKEN.finditer(_LAYOUT.sub(" ", text).rstrip()):
        kind = match.lastgroup or ""
        has_space = match[0][:1].isspace()
        if match["repeating"]:
            kind = "number"
            digits, period = len(match["fixed"]), len(match["period"])
            head = Fraction(int((match["whole"] or "0") + match["fixed"]), 10**digits)
            value = str(head + Fraction(int(match["period"]), 10**digits * (10**period - 1)))
        else:
            value = match[kind]
        found.append(_Token(kind, value, has_space))
    return tuple(found)


class _Parser:
    """Descend through an expression: sums of products of powers."""

    def __init__(self, text: str) -> None:
        self.tokens = list(_tokens(text))
        self.at = 0
        self.depth = 0

    def whole(self) -> Tree:
        tree = self.sum()
        if self.next is not _END:
            raise Unreadable
        return tree

    @property
    def next(self) -> _Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def take(self, *texts: str) -> str | None:
        if self.next.text in texts and self.next is not _END:
            self.at += 1
            return self.tokens[self.at - 1].text
        return None

    def expect(self, text: str) -> None:
        if self.take(text) is None:
            raise Unreadable

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        sign = self.take("+", "-", "\\pm", "\\mp")
        tree = self.product()
        if sign == "-":
            tree = ("*", Fraction(-1), tree)
        elif sign in ("\\pm", "\\mp"):  # two values: a name of its own, and no part of a longer sum
            self.depth -= 1
            return (str(sign), tree)
        while sign := self.take("+", "-"):
            term = self.product()
            tree = ("+", tree, ("*", Fraction(-1), term) if sign == "-" else term)
        self.depth -= 1
        return tree

    def product(self) -> Tree:
        tree = self.factor()
        is_divided = False  # by a slash: `1/2x` and `1/2/3` have two readings
        while True:
            if self.take(*_TIMES):
                tree, is_divided = ("*", tree, self.signed()), False
            elif self.take("\\div"):
                tree = ("/", tree, self.signed())
            elif self.take("/"):
                if is_divided:
                    raise Unreadable
                tree, is_divided = ("/", tree, self.signed()), True
            elif self.starts_factor():
                if is_divided or self.next.kind == "number":
                    raise Unreadable
                tree = ("*", tree, self.factor())
            else:
                return tree

    def signed(self) -> Tree:
        sign = self.take("+", "-")
        tree = self.factor()
        return ("*", Fraction(-1), tree) if sign == "-" else tree

    def starts_factor(self) -> bool:
        kind, text, _ = self.next
        if kind == "command":
            name = text[1:]
            return text in _FRACTIONS or name in ("sqrt", "binom") or name in FUNCTIONS or name in _GREEK
        return kind in ("number", "letters") or text in ("(", "{")

    def factor(self) -> Tree:
        tree = self.primary()
        while True:
            if self.take("^", "**"):
                tree = ("^", tree, self.exponent())
            elif self.take("!"):
                tree = ("!", tree)
            elif self.take("%", "\\%"):
                tree = ("*", tree, Fraction(1, 100))
            else:
                return tree

    def exponent(self) -> Tree:
        if self.take("{"):
            tree = self.sum()
            self.expect("}")
            return tree
        sign = self.take("-", "+")
        token = self.next
        if token.kind == "letters":
            tree = self.letter()
        elif token.kind == "number" or token.text == "(" or token.text[1:] in _GREEK:
            tree = self.primary(is_exponent=True)
        else:
            raise Unreadable
        tree = ("*", Fraction(-1), tree) if sign == "-" else tree
        return ("^", tree, self.exponent()) if self.take("^", "**") else tree

    def letter(self) -> str:
        """Take one name, with its index; more letters behind it stay."""
        token = self.next
        self.tokens[self.at : self.at + 1] = [_Token("letters", token.text[0]), _Token("letters", token.text[1:])]
        self.at += 1
        if not self.next.text:
            del self.tokens[self.at]
        return self.indexed(token.text[0])

    def indexed(self, name: str) -> str:
        if not self.take("_"):
            return name
        if self.take("{"):
            start = self.at
            while self.next is not _END and self.next.text not in "{}":
                self.at += 1
            index = "".join(token.text for token in self.tokens[start : self.at])
            self.expect("}")
        else:
            index = self.next.text
            self.at += 1
        if not index.isalnum():
            raise Unreadable
        return f"{name}_{index}"

    def primary(self, is_exponent: bool = False) -> Tree:
        kind, text, _ = self.next
        if kind == "number":
            self.at += 1
            return self.mixed(text) if not is_exponent else Fraction(text)
        if kind == "letters":
            return self.names()
        if kind == "command":
            self.at += 1
            return self.command(text)
        for opening, closing in (("(", ")"), ("{", "}"), ("[", "]")):
            if self.take(opening):
                tree = self.sum()
                self.expect(closing)
                return tree
        if self.take("|"):
            tree = self.sum()
            self.expect("|")
            return ("abs", tree)
        raise Unreadable

    def mixed(self, text: str) -> Tree:
        """Return a number, with the proper fraction behind it: `1 1/2`, `1\\frac{1}{2}`."""
        number = Fraction(text)
        rest = self.tokens[self.at : self.at + 4]
        if [t.text in _FRACTIONS for t in rest[:1]] == [True]:
            before = self.at
            self.at += 1
            top, bottom = self.argument(), self.argument()
            if isinstance(top, Fraction) and isinstance(bottom, Fraction):
                if not (text.isdigit() and 0 < top < bottom):
                    raise Unreadable  # `2\frac{5}{2}`: a product, or a slip of the pen
                return number + top / bottom
            self.at = before
        elif len(rest) > 2 and rest[0].kind == rest[2].kind == "number" and rest[1].text == "/":
            top, bottom = Fraction(rest[0].text), Fraction(rest[2].text)
            is_longer = len(rest) > 3 and rest[3].text == "/"
            if not (text.isdigit() and rest[0].has_space and 0 < top < bottom) or is_longer:
                raise Unreadable
            self.at += 3
            return number + top / bottom
        return number

    def names(self) -> Tree:
        text = self.next.text
        if text in ("pi", "sqrt", "exp", "ln", "log", "sin", "cos", "tan"):
            self.at += 1
            return self.command("\\" + text)
        if len(text) > 3 or text.lower() in _PROSE:
            raise Unreadable
        name = self.letter()
        if name in ("f", "g", "h", "P", "F") and self.next.text == "(" and not self.next.has_space:
            self.at += 1
            argument = self.sum()
            self.expect(")")
            return (name, argument)  # a function that nothing is known of
        return name

    def command(self, text: str) -> Tree:
        name = text[1:]
        if text in _FRACTIONS:
            return ("/", self.argument(), self.argument())
        if name == "binom":
            return ("binom", self.argument(), self.argument())
        if name == "sqrt":
            degree: Tree = Fraction(2)
            if self.take("["):
                degree = self.sum()
                self.expect("]")
            return ("root", self.argument(), degree)
        if name in FUNCTIONS:
            return self.function(name)
        if name in _GREEK:
            return self.indexed(text)
        if name in _DOTS:
            return "\\ldots"
        if name in (
            "text",
            "mathrm",
            "mathbf",
            "mathit",
            "textbf",
            "boldsymbol",
            "mathsf",
            "mathnormal",
            "operatorname",
        ):
            return self.argument()
        if name in ("lvert", "vert"):
            tree = self.sum()
            if self.take("\\rvert", "\\vert") is None:
                raise Unreadable
            return ("abs", tree)
        raise Unreadable

    def function(self, name: str) -> Tree:
        base: Tree = None
        power: Tree = None
        if name == "log" and self.take("_"):
            base = self.argument()
        if self.take("^"):
            power = self.exponent()
            if isinstance(power, tuple):
                raise Unreadable  # `\sin^{-1} x` is an inverse for most, a reciprocal for some
        if self.next.text in ("(", "{"):
            argument = self.primary()
        else:  # what is written behind it without a sign, up to the next function
            argument = self.factor()
            while self.starts_factor() and self.next.kind != "number" and self.next.text[1:] not in FUNCTIONS:
                argument = ("*", argument, self.factor())
        tree: Tree = ("log", argument, base) if base is not None else (name, argument)
        return tree if power is None else ("^", tree, power)

    def argument(self) -> Tree:
        """Take a group, or else one digit, letter or command, as TeX does."""
        kind, text, has_space = self.next
        if self.take("{"):
            tree = self.sum()
            self.expect("}")
            return tree
        if kind == "number" and text[0].isdigit():
            head, tail = text[0], text[1:]
            self.tokens[self.at : self.at + 1] = [_Token("number", head, has_space)] + [_Token("number", tail)] * bool(
                tail
            )
            self.at += 1
            return Fraction(head)
        if kind == "letters":
            return self.letter()
        if kind == "command":
            self.at += 1
            return self.command(text)
        if text == "(":
            return self.primary()
        raise Unreadable
