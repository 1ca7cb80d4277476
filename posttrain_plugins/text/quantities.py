r"""Split the unit or the currency from an answer: `5 \text{ cm}`, `\$18`, `60 miles per hour`. No paper.

Units are never converted: `2 hours` is not `120 minutes`. A letter alone is a unit only behind a space (`5 m`), since
`5m` is as likely five times m. A word that is no unit counts things (`5 apples`), but for words such as `halves`.
"""

from __future__ import annotations

import re

__all__ = ["split_unit"]

MAX_CHARS = 200  # of an answer that may have a unit

# Each line: the names of one unit.
_UNITS = """
mm millimeter millimetre
cm centimeter centimetre
dm decimeter decimetre
m meter metre
km kilometer kilometre
in inch inches
ft foot feet
yd yard
mi mile
mg milligram
g gram gramme
kg kilogram kilo
t ton tonne
lb lbs pound
oz ounce
ml mL milliliter millilitre
cl centiliter centilitre
dl deciliter decilitre
L l liter litre
gal gallon
ms millisecond
s sec second
min minute
h hr hour
day
week
month
year
mph
Hz hertz
kHz
N newton
J joule
kJ kilojoule
W watt
kW kilowatt
V volt
A ampere amp
K kelvin
Pa pascal
kPa
mol mole
rad radian
deg degree
unit
people person
piece
item
student
point
"""
_BY_NAME = {name: line.split()[0] for line in _UNITS.strip().splitlines() for name in line.split()}
_BY_NAME |= {name + "s": unit for name, unit in _BY_NAME.items() if len(name) > 2 and not name.endswith("s")}
_CURRENCIES = {"$": "$", r"\$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "USD": "$", "EUR": "€", "GBP": "£"}
_MONEY = {"dollar": "$", "dollars": "$", "euro": "€", "euros": "€", "cent": "cent", "cents": "cent", "pence": "pence",
          "yuan": "yuan", "yen": "¥", "rupees": "₹", "USD": "$", "EUR": "€", "GBP": "£", "bucks": "$"}  # fmt: skip
# Words behind a number that say how much and not of what, that compare, or that begin a sentence.
_NO_COUNTS = frozenset(
    re.findall(
        r"\w+",
        """
        hundred thousand million billion trillion dozen half third fourth fifth quarter tenth percent squared cubed
        hundreds thousands millions billions dozens halves thirds fourths fifths sixths sevenths eighths ninths tenths
        quarters hundredths thousandths percents tens squares cubes factorial mod prime odd even times plus minus left
        and or not but more less fewer over under each off out too also only per for from with is as was this that are
        were will can yes does always perhaps because since when while than then
        cent milliard mille mitad mil millón millones demi tiers quart pour cento mila milione milioni metà
        hundert tausend millionen milliarden dutzend hälfte halb drittel viertel prozent und oder nicht sowie
        mehr weniger тысяч тысячи миллион миллионов сотен сто половина процентов и или не et ou pas plus moins y o no
        más menos
        """,
    )
)
_PREFIX = re.compile(r"([+-]?)\s*(\\\$|\$|€|£|¥|₹|(?:USD|EUR|GBP)(?![A-Za-z]))\s*(?=-?[\d.])")
_DEGREES = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*([CF]?)|\s*\\degree\s*()")
_TEXT = re.compile(r"(?:\\[,;:! ]|~|\s){0,8}\\(?:text|mathrm|textrm|mbox|rm)\s*\{([^{}]*)\}\s*(?:\^\s*\{?(\d)\}?)?")
# Bounded, and with one way to match each text: an answer may be the babble of a model.
_BEHIND = re.compile(r"(?<=[\d)}.])(?P<space>(?:\s|\\[,;:! ]|~){0,8})(?P<phrase>[€£¥₹]|[^\W\d_][\w/ ^{}]{0,60})$")
# What Chinese, Japanese and Korean count in; not their hundreds, thousands and millions.
_SCALES_OF_ASIA = "百千万萬亿億兆半만억"
_COUNTER = re.compile(rf"(?<=[\d)}}])\s*((?![{_SCALES_OF_ASIA}])[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{{1,3}})$")
_ONE = re.compile(r"([^\W\d_]+)\s*(?:\^\s*\{?(\d)\}?|(\d))?")


def split_unit(text: str) -> tuple[str, str | None]:
    r"""Split an answer into its value and its unit.

    Args:
        text: without emphasis and dollars around it.

    Returns:
        What is left of the text, and one name for the unit; None where it has none.

    Example:
        >>> split_unit(r"5 \text{ cm}"), split_unit("10 meters per second"), split_unit("5x"), split_unit("$18")
        (('5', 'cm'), ('10', 'm/s'), ('5x', None), ('18', '$'))
    """
    if prefix := _PREFIX.match(text):
        rest, unit = split_unit(text[prefix.end() :])
        currency = _CURRENCIES[prefix[2]]
        if unit not in (None, currency):
            return text, None
        return prefix[1] + rest, currency
    if len(text) > MAX_CHARS:
        return text, None
    for start in range(len(text) - 1, 0, -1):
        # From the right: the unit is the longest tail that is one.
        if text[start] in "^\\~ " and (match := _DEGREES.fullmatch(text, start)):
            return text[:start].rstrip(), "deg" + (match[1] or "")
    for match in _TEXT.finditer(text):
        if match.end() == len(text) and match.start() > 0 and (unit := _unit_of(match[1], match[2])):
            return text[: match.start()], unit
    if counted := _COUNTER.search(text):
        return text[: counted.start()], counted[1]
    for match in _BEHIND.finditer(text):
        if match.end() == len(text) and (unit := _unit_of(match["phrase"], None)):
            if len(match["phrase"]) == 1 and match["phrase"].isalpha() and not match["space"]:
                continue
            return text[: match.start()], unit
    return text, None


def _unit_of(phrase: str, power: str | None) -> str | None:
    """Return one name for a phrase such as `cm^2`, `square meters`, `miles per hour`, `apples`."""
    phrase = phrase.strip()
    if phrase in _CURRENCIES or phrase in _MONEY:
        return _CURRENCIES.get(phrase) or _MONEY[phrase]
    parts = [_single(part.strip()) for part in re.split(r"/|\bper\b", phrase)]
    if None in parts:
        return None
    return "/".join(part for part in parts if part is not None) + (f"^{power}" if power else "")


def _single(part: str) -> str | None:
    for word, power in (("square ", "^2"), ("sq ", "^2"), ("sq. ", "^2"), ("cubic ", "^3")):
        if part.startswith(word):
            unit = _single(part.removeprefix(word))
            return None if unit is None else unit + power
    match = _ONE.fullmatch(part)
    if match is None:
        return None
    name, power = match[1], match[2] or match[3]
    unit = _BY_NAME.get(name) or _BY_NAME.get(name.lower() if len(name) > 3 else "") or _MONEY.get(name)
    if unit is None and power is None and _counts_things(name):
        unit = name
    return None if unit is None else unit + (f"^{power}" if power else "")


def _counts_things(name: str) -> bool:
    # Two Latin letters may be a product of names; other letters are none.
    is_word = len(name) >= 3 and name[1:].islower() if name.isascii() else True
    return is_word and name.casefold() not in _NO_COUNTS and name[0] not in _SCALES_OF_ASIA
