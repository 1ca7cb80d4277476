r"""Say what an answer is: a number, expression, quantity, list, set, interval, matrix, equation, choice, or words.

The decisions, with examples: `docs/answers.md`. An answer is parsed, never rewritten as text; what is nothing else is
words. No paper.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from posttrain_plugins.text.expressions import Expression, read
from posttrain_plugins.text.quantities import split_unit

__all__ = ["Answer", "Choice", "Matrix", "Quantity", "Relation", "Sequence", "Words", "parse", "plain"]


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

MAX_CHARS = 1000  # longer answers are texts
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


@lru_cache(maxsize=8192)
def parse(answer: str) -> Answer:
    """Say what an answer is; what is nothing else is words."""
    if len(answer) > MAX_CHARS:
        return _words(answer)
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
    if not text:
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
