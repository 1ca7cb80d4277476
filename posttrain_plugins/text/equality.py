r"""Say what an answer is, and whether two answers mean the same. The decisions, with examples: `docs/answers.md`.

An answer is parsed into what it is: a number or expression, a quantity with a unit, a list, set, interval, matrix, an
equation, a lettered choice, or words. Two answers are equal where the same thing stands on both sides; where that
cannot be decided they are not equal, so that a reward never pays on a guess. No paper.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from posttrain_plugins.text import equivalence
from posttrain_plugins.text.expressions import Expression, is_equal, read
from posttrain_plugins.text.quantities import split_unit

__all__ = ["Answer", "canonical", "equivalent", "is_algebra_needed", "parse", "plain"]


class Words(NamedTuple):
    """An answer that is no mathematics, without case, emphasis and the last full stop."""

    text: str


class Choice(NamedTuple):
    """A lettered choice, with what stands behind the letter."""

    letter: str
    rest: Answer | None = None


class Quantity(NamedTuple):
    """A number or expression with a unit or currency."""

    value: Expression
    unit: str


class Sequence(NamedTuple):
    """A tuple or list (brackets ""), a set ("{}"), or an interval ("[]", "[)", "(]"), in the order written."""

    brackets: str
    items: tuple[Answer, ...]


class Matrix(NamedTuple):
    """The rows of a matrix."""

    rows: tuple[tuple[Answer, ...], ...]


class Relation(NamedTuple):
    """Two sides with a sign between them: an equation, an inequality, a union or an intersection."""

    sign: str
    left: Answer
    right: Answer


Answer: TypeAlias = Words | Choice | Quantity | Sequence | Matrix | Relation | Expression
Verdict: TypeAlias = Literal[
    "equal", "different", "algebra"
]  # "algebra": equal only if a computer algebra system says so

_INTEGER = re.compile(r"-?[1-9]\d{0,17}|0")
_SPACED_NUMBERS = re.compile(r"[+-]?\d+(?:\.\d+)?(?:\s+\d+(?:\.\d+)?)+|[+-]?\d+(?:\.\d+)?(?:\s+[+-]?\d+(?:\.\d+)?){2,}")
# Commas in groups of three; inside brackets a bare comma separates. `{,}`, `\,` and `,\!` group wherever they stand.
_THOUSANDS = re.compile(
    r"(?<![\d,.(\[{])\d{1,3}(?:,\d{3})+(?!,?\d)|(?<![\d.])\d{1,3}(?:(?:\{,\}|\\,|,?\\!)\d{3})+(?!\d)"
)
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[-.]\d{1,2}[-.]\d{4}|\d{1,2}/\d{1,2}/\d{2,4}|.*\d:\d.*", re.DOTALL)
_CHOICE = re.compile(r"\(([A-Za-z])\)[.,:]?(?:\s*(.+))?|([A-Za-z])[.)]?|([A-Z])[.):]\s+(.+)", re.DOTALL)
_LETTERS = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_NAMES = re.compile(r"[b-df-hj-np-tv-z]{2,3}|[abcxyz]{2,3}|pi")  # letters that are a product of names and no word
_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|emph|mathrm|mathbf|mathit|mathsf|boldsymbol|boxed|fbox|mbox)\s*"
    r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
)
_LETTER_IN_A_FONT = re.compile(r"^\\(?:text|textbf|mathrm|mathbf)\s*\{\s*(\([A-Za-z]\))\s*\}(?:\\[ ,;:]|\s)*(?=\S)")
_MATRIX = re.compile(r"\\begin\{([bp]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_NAME = re.compile(r"\\?[A-Za-z]\w*'?(?:_\{?\w+\}?)?|[A-Za-z]\([\w ,|]+\)|\\(?:text|mathrm)\{[\w ]+\}")
_OPENING, _CLOSING = ("(", "[", "{", "\\{", "\\langle"), (")", "]", "}", "\\}", "\\rangle")
_SIGNS = {
    "\\leq": "<=",
    "\\le": "<=",
    "\\geq": ">=",
    "\\ge": ">=",
    "\\neq": "!=",
    "\\ne": "!=",
    "\\lt": "<",
    "\\gt": ">",
} | {sign: sign for sign in ("=", "<", ">", "<=", ">=", "!=", "\\approx", "\\in", "\\equiv")}
_PIECES = re.compile(r"\\[A-Za-z]+|\\.|<=|>=|!=|.", re.DOTALL)
_SIGNED_INFINITY = re.compile(r"([+-]?)\s*(?:\\infty|\binf(?:inity)?\b|\boo\b)")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"(?<=\d)\s*(?:\\text\{{)?\s*\b({'|'.join(_SCALES)})\b\}}?")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿⁱ]+")
_SIGNS_OF_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "π": r"\pi ", "∞": r"\infty ",
     "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∅": r"\emptyset ",
     "±": r"\pm ", "°": r"^\circ ", "θ": r"\theta ", "⁄": "/", "“": '"', "”": '"', "’": "'", 
     "。": ".", "，": ",", "、": ","}
)  # fmt: skip


def equivalent(a: str, b: str) -> bool:
    r"""Return whether two answers mean the same (`docs/answers.md`).

    Numbers are compared exactly. Roots, powers and functions are compared by computer algebra where the extra `math` is
    installed; this takes milliseconds, ends within seconds and works in any thread (`text/equivalence.py`).

    Example:
        >>> equivalent("0.5", r"\frac{1}{2}"), equivalent("3 4", "34"), equivalent("(B) Paris", "B")
        (True, False, True)
    """
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


def is_algebra_needed(a: str, b: str) -> bool:
    """Return whether only computer algebra could find two answers equal."""
    return a != b and _verdict(*sorted((a, b))) == "algebra"


@lru_cache(maxsize=65536)
def _verdict(a: str, b: str) -> Verdict:
    return compare(parse(a), parse(b))


@lru_cache(maxsize=8192)
def canonical(answer: str) -> str:
    r"""Write an answer in one form: numbers as fractions, expressions sorted, words in lower case.

    Answers of one form are equal; equal answers may have several forms, which `equivalent` compares.

    Example:
        >>> canonical("$1,000.50$"), canonical(r"\frac{2}{4}"), canonical(r" \text{Paris}. ")
        ('2001/2', '1/2', 'paris')
    """
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


# --- Parsing ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def parse(answer: str) -> Answer:
    """Say what an answer is; what is nothing else is words."""
    text = _LETTER_IN_A_FONT.sub(r"\1 ", plain(answer))
    if choice := _CHOICE.fullmatch(text):
        letter = choice[1] or choice[3] or choice[4]
        rest = choice[2] or choice[5]
        return Choice(letter if rest is None else letter.upper(), None if rest is None else parse(rest))
    if _DATE.fullmatch(text) or (_LETTERS.fullmatch(text) and not _NAMES.fullmatch(text)):
        return _words(text)
    return _read(text) or _read(text.rstrip(" .,;:!?")) or _words(text)


def plain(answer: str) -> str:
    r"""Take off what is only about looks: emphasis, dollars, `\text{}` around all of it, variants of Unicode.

    Example:
        >>> plain("**$x²$**."), plain(r"\text{ even }")
        ('x^{2}', 'even')
    """
    text = answer if answer.isascii() else _as_ascii(answer)
    while True:
        before, text = text, text.strip()
        for mark in ("**", "__", "*", "_", "`", "$$", "$"):
            inner = text[len(mark) : -len(mark)]
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and mark not in inner:
                text = inner
        for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]"), ('"', '"')):
            if text.startswith(opening) and text.endswith(closing) and len(text) >= 4:
                text = text[len(opening) : -len(closing)]
        if text.endswith((".", ",", ";", ":")) or (text.endswith("!") and not re.search(r"[\d)}a-z]!$", text)):
            text = text[:-1]
        if (font := _FONT.fullmatch(text)) is not None:
            text = font[1]
        if text == before:
            return text


def _as_ascii(text: str) -> str:
    text = _VULGAR.sub(lambda m: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text)
    text = _SUPERSCRIPTS.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = re.sub(r"√\s*(\d+|\w|\()", lambda m: r"\sqrt" + (m[1] if m[1] == "(" else f"{{{m[1]}}}"), text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS_OF_UNICODE)).translate(_SIGNS_OF_UNICODE)
    if text.isascii():
        return text
    return "".join(str(unicodedata.digit(c)) if not c.isascii() and c.isdecimal() else c for c in text)


def _words(text: str) -> Words:
    text = re.sub(r"\\(?:left|right|[,;:! ])(?![A-Za-z])|[$]", " ", _FONT.sub(r"\1", text))
    return Words(" ".join(text.casefold().split()).strip("*`\"' ").rstrip(".!?,;: ").strip("*`\"' "))


def _read(text: str) -> Answer | None:
    """Read a whole answer: relations hold lists, lists hold relations where each element has one."""
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), re.sub(r"\\left\b|\\right\b|\\[bB]igg?[lr]?\b", "", text))
    text = _SCALE.sub(lambda m: rf"\times 10^{{{_SCALES[m[1]]}}}", text)
    if not text or len(text) > 1000:
        return None
    if _SPACED_NUMBERS.fullmatch(text):
        return _sequence("", text.split())
    if (matrix := _MATRIX.fullmatch(text.strip("() "))) is not None:
        return _matrix(matrix[2])
    try:
        pieces = _split(text, {",", ";", *_SIGNS, "\\cup", "\\cap"})
    except ValueError:  # brackets that do not close
        return _bracketed(text)
    signs = [sign for sign, _ in pieces[1:]]
    sides = [side.strip() for _, side in pieces]
    relations = [sign for sign in signs if sign in _SIGNS]
    if len(relations) == 1 and signs[0] == relations[0]:  # `x = 2, 3` names a list
        left = sides[0]
        right = _read(text[text.index(left) + len(left) :].lstrip()[len(signs[0]) :].strip())
        return None if right is None else _relation(relations[0], left, right)
    if relations:
        return None
    if signs and set(signs) <= {"\\cup", "\\cap"}:
        parts = [_read(side) for side in sides]
        if None in parts or len(set(signs)) > 1:
            return None
        return Relation(signs[0], Words(signs[0]), Sequence("", tuple(part for part in parts if part is not None)))
    if signs and set(signs) <= {",", ";"}:
        return _sequence("", sides)
    return _bracketed(text) if not signs else None


def _relation(sign: str, left: str, right: Answer) -> Answer | None:
    # A name in front of an equals sign may be left out by the other answer: the mark says that it is one.
    if _NAME.fullmatch(left) or re.fullmatch(r"\([A-Za-z](?:, ?[A-Za-z])+\)", left):
        return Relation(_SIGNS[sign], Words("\0" + re.sub(r"[\s{}\\]", "", left)), right)
    first = _read(left)
    return None if first is None else Relation(_SIGNS[sign], first, right)


def _bracketed(text: str) -> Answer | None:
    text = text.strip()
    if text in (r"\emptyset", r"\varnothing", r"\{\}", "{}"):
        return Sequence("{}", ())
    if infinity := _SIGNED_INFINITY.fullmatch(text):
        return Words("-infinity" if infinity[1] == "-" else "infinity")
    opening = next((mark for mark in ("\\{", "(", "[", "{") if text.startswith(mark)), None)
    closing = next((mark for mark in ("\\}", ")", "]", "}") if text.endswith(mark)), None)
    if opening and closing and len(text) > len(opening + closing):
        inside = text[len(opening) : -len(closing)]
        try:
            pieces = _split(inside, {",", ";"})
        except ValueError:  # `(1)(2)`: these two do not belong together
            pieces = []
        kind = (opening + closing).replace("\\", "")
        if kind in ("()", "[]", "[)", "(]") and len(pieces) > 1:
            is_interval = len(pieces) == 2 and kind != "()"
            return _sequence(kind if is_interval else "", [side for _, side in pieces])
        if kind == "{}" and (len(pieces) > 1 or opening == "\\{"):
            return _sequence("{}", [side for _, side in pieces])
    return _quantity(text)


def _quantity(text: str) -> Answer | None:
    value, unit = split_unit(text)
    expression = read(value)
    if unit is None:
        return expression
    return None if expression is None else Quantity(expression, unit)


def _sequence(brackets: str, sides: list[str]) -> Sequence | None:
    items = [_item(side) for side in sides]
    return None if None in items else Sequence(brackets, tuple(item for item in items if item is not None))


def _item(text: str) -> Answer | None:
    text = plain(text)
    if not text:
        return None
    return _read(text) or (Words(text.casefold()) if _LETTERS.fullmatch(text) else None)


def _matrix(body: str) -> Matrix | None:
    rows = [[_read(cell.strip()) for cell in row.split("&")] for row in re.split(r"\\\\", body) if row.strip()]
    if not rows or any(cell is None for row in rows for cell in row) or len({len(row) for row in rows}) > 1:
        return None
    return Matrix(tuple(tuple(cell for cell in row if cell is not None) for row in rows))


def _split(text: str, at: set[str]) -> list[tuple[str, str]]:
    """Split at marks that stand in no brackets: the mark in front of each part, and the part.

    Raises:
        ValueError: brackets do not close.
    """
    parts = [("", "")]
    depth = 0
    for piece in _PIECES.findall(text):
        depth += (piece in _OPENING) - (piece in _CLOSING)
        if depth < 0:
            raise ValueError
        if depth == 0 and piece in at:
            parts.append((piece, ""))
        else:
            parts[-1] = (parts[-1][0], parts[-1][1] + piece)
    if depth:
        raise ValueError
    return parts
