"""Sizes in a text, such as 8 ft, 20v or 2x4, and the other ways to write them. The number is never changed.

English only. Only spellings of one unit stand for each other: nothing is converted. What may be no size is left alone:
`3 in 1`, `3m` (a brand), a single letter that stands apart from the number, a height such as 6'2".
"""

from dataclasses import dataclass

import regex


@dataclass(frozen=True)
class Unit:
    """How a unit may be written: apart from the number, right behind it, or both ways."""

    apart: tuple[str, ...]
    behind: tuple[str, ...]
    marks: str = ""

    @property
    def spellings(self) -> tuple[str, ...]:
        """What may follow a number, with the blank where there is one."""
        return (*(f" {word}" for word in self.apart), *self.behind)


@dataclass(frozen=True)
class Size:
    """A size in a text: where, as written there, and every way to write it."""

    span: tuple[int, int]
    written: str
    spellings: tuple[str, ...]


# `marks`: other signs that are read for the unit, but not written: closing quotes and primes.
UNITS = (
    Unit(("ft", "ft.", "feet", "foot"), ("ft", "'"), marks="\u2019\u2032"),
    Unit(("in", "in.", "inch", "inches"), ("in", '"'), marks="\u201d\u2033"),
    Unit(("lb", "lb.", "lbs", "pound", "pounds"), ("lb", "lbs")),
    Unit(("oz", "oz.", "ounce", "ounces"), ("oz",)),
    Unit(("gal", "gal.", "gallon", "gallons"), ("gal",)),
    Unit(("mm", "millimeter", "millimeters"), ("mm",)),
    Unit(("cm", "centimeter", "centimeters"), ("cm",)),
    Unit(("meter", "meters"), ("m",)),
    Unit(("volt", "volts"), ("v",)),
    Unit(("watt", "watts"), ("w",)),
    Unit(("amp", "amps"), ("a", "amp")),
    Unit(("liter", "liters", "litre", "litres"), ("l",)),
    Unit(("ml", "milliliter", "milliliters"), ("ml",)),
)
_BETWEEN = ("x", " x ", " by ")

_NUMBER = r"\d+(?:[.,]\d+)?(?:[ -]?\d+[/\u2044]\d+|[/\u2044]\d+)?"
_BEFORE = r"""(?<![\w.,/\u2044'"\u2019\u201d\u2032\u2033-])"""
_AFTER = r"""(?![\w'"\u2019\u201d\u2032\u2033]|[.,/\u2044-]\d)"""


def sizes(text: str) -> list[Size]:
    """The sizes in a text, in its order; none overlaps another.

    >>> [(size.span, size.written) for size in sizes("8 ft 2x4 in 3m paper")]
    [((0, 4), '8 ft'), ((5, 8), '2x4')]
    """
    found = []
    for match in _SIZES.finditer(text):
        if match["extents"]:
            numbers = regex.split(r"\s*(?:x|\xd7|\bby\b)\s*", match["extents"].lower())
            spellings = tuple(between.join(numbers) for between in _BETWEEN)
        else:
            unit = next(unit for place, unit in enumerate(UNITS) if match[f"unit{place}"])
            spellings = tuple(match["number"] + spelling for spelling in unit.spellings)
        found.append(Size(match.span(), match.group(), spellings))
    return found


def respelled(size: Size) -> list[str]:
    """The ways to write a size other than the one in the text, whatever its case; never none."""
    return [spelling for spelling in size.spellings if spelling != size.written.casefold()]


def _one_of(unit: Unit) -> str:
    apart = sorted({*unit.apart, *(word for word in unit.behind if len(word) > 1)}, key=len, reverse=True)
    behind = [word for word in unit.behind if len(word) == 1 and word.isalpha()]
    marks = [*(word for word in unit.behind if not word.isalpha()), *unit.marks]
    # Before a number or an article `in` is the preposition: 3 in 1, 2 in the box.
    words = [r"in(?!\s+(?:\d|one\b|the\b|an?\b|stock\b))" if word == "in" else regex.escape(word) for word in apart]
    ways = [rf"(?:\s*-?\s*)(?:{'|'.join(words)})", *behind]
    if marks:
        ways.append(rf"\s?(?:{'|'.join(map(regex.escape, marks))})")
    return "|".join(ways)


def _pattern() -> "regex.Pattern[str]":
    units = "|".join(f"(?P<unit{place}>{_one_of(unit)})" for place, unit in enumerate(UNITS))
    size = rf"(?P<number>{_NUMBER})(?!(?<=\b3)m\b)(?:{units})"
    extents = rf"(?P<extents>{_NUMBER}(?:\s*[x\xd7]\s*{_NUMBER}|\s+by\s+{_NUMBER})+)"
    return regex.compile(rf"{_BEFORE}(?:{extents}|{size}){_AFTER}", regex.IGNORECASE)


_SIZES = _pattern()
