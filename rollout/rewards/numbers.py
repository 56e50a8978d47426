r"""Numbers as people and LaTeX write them, read exactly.

No float on the way: integers of 30 digits that differ in the last one are different numbers.
"""

import re
from fractions import Fraction
from typing import Final

MAX_NUMBER_CHARS: Final = 1000
"""A longer text is not read as a number: answers are short, and exact arithmetic on millions of digits is
not."""

MAX_EXPONENT: Final = 400
"""Bound on the power in 1.5e10, beyond what a float can hold; without it 1e999999999 fills memory."""

MAX_BASE_CHARS: Final = 20
"""Bound on the base of a power, for the same reason."""

_GROUPED = r"\d{1,3}(?:,\d{3})+|\d+"
_DECIMAL: Final = re.compile(rf"(?P<whole>{_GROUPED})?(?P<part>\.\d*)?(?:[eE](?P<exponent>[+-]?\d+))?")
_POWER: Final = re.compile(
    r"(?:(?P<factor>.+?)(?:\\times|\\cdot|\*))?(?P<base>[\d.,]+)\^(?:\{(?P<long>[+-]?\d+)\}|(?P<short>\d+))"
)
_LATEX_FRACTION: Final = re.compile(
    r"(?P<whole>\d*)\\[dtc]?frac(?:\{(?P<top>[^{}]+)\}|(?P<top1>\d))(?:\{(?P<bottom>[^{}]+)\}|(?P<bottom1>\d))"
)
_MIXED: Final = re.compile(r"(?P<sign>[+-]?) ?(?P<whole>\d+) (?P<top>\d+) ?/ ?(?P<bottom>\d+)")
_SPACED_GROUPS: Final = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
_LISTED: Final = re.compile(r"[\d,] +\d")
_SLASH: Final = re.compile(r"(?P<top>[^/]+)/(?P<bottom>[^/]+)")


def parse_number(text: str) -> Fraction | None:
    r"""Return the number that `text` is, or None where it is something else.

    Read are whole numbers (with `,` or a space between groups of three), decimals, powers (`10^{3}`,
    `1.5e3`, `1.5\times10^{3}`), fractions (`3/4`, `\frac{3}{4}`), mixed numbers (`1\frac{1}{2}`, `1 1/2`),
    with a sign. Any other space between digits, or after a comma, parts two numbers: that is not one.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = " ".join(text.split()).replace("{,}", ",").replace("\u2212", "-")
    if match := _MIXED.fullmatch(text):
        part = _ratio(match["top"], match["bottom"])
        return None if part is None else (int(match["whole"]) + part) * (-1 if match["sign"] == "-" else 1)
    text = _SPACED_GROUPS.sub(lambda match: match[0].replace(" ", ""), text)
    if _LISTED.search(text):
        return None
    text = text.replace(" ", "")
    sign = 1
    while text[:1] in ("+", "-") and text:
        sign = -sign if text[0] == "-" else sign
        text = text[1:]
    number = _unsigned(text)
    return None if number is None else sign * number


def _unsigned(text: str) -> Fraction | None:
    if match := _LATEX_FRACTION.fullmatch(text):
        ratio = _ratio(match["top"] or match["top1"], match["bottom"] or match["bottom1"])
        return None if ratio is None else int(match["whole"] or 0) + ratio
    if match := _SLASH.fullmatch(text):
        return _ratio(match["top"], match["bottom"])
    if match := _POWER.fullmatch(text):
        factor = _decimal(match["factor"] or "1")
        power = _power(match["base"], match["long"] or match["short"])
        return None if factor is None or power is None else factor * power
    return _decimal(text)


def _power(base: str, exponent: str) -> Fraction | None:
    number, power = _decimal(base), _exponent(exponent)
    if number is None or power is None or len(base) > MAX_BASE_CHARS or (number == 0 and power < 0):
        return None
    return number**power


def _ratio(top: str, bottom: str) -> Fraction | None:
    signed = (_signed_decimal(top), _signed_decimal(bottom))
    if signed[0] is None or signed[1] is None or signed[1] == 0:
        return None
    return signed[0] / signed[1]


def _signed_decimal(text: str) -> Fraction | None:
    if text[:1] == "-":
        number = _decimal(text[1:])
        return None if number is None else -number
    return _decimal(text)


def _decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text)
    if match is None or (match["whole"] is None and len(match["part"] or "") < 2):
        return None
    digits = (match["part"] or ".")[1:]
    number = Fraction(int((match["whole"] or "0").replace(",", "") + digits), 10 ** len(digits))
    return _scaled(number, match["exponent"] or "0")


def _scaled(number: Fraction, exponent: str) -> Fraction | None:
    power = _exponent(exponent)
    return None if power is None else number * Fraction(10) ** power


def _exponent(text: str) -> int | None:
    power = int(text)
    return power if abs(power) <= MAX_EXPONENT else None
