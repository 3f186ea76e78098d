"""Which sizes are found in a text, and how else they may be written."""

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from ecomspark.sizes import UNITS, respelled, sizes

FEET = {"8 ft", "8 ft.", "8 feet", "8 foot", "8ft", "8'"}
INCHES = {"1 1/2 in", "1 1/2 in.", "1 1/2 inch", "1 1/2 inches", "1 1/2in", '1 1/2"'}


@pytest.mark.parametrize(
    ("text", "spellings"),
    [
        *((f"ladder {size}", FEET) for size in (*sorted(FEET), "8-ft", "8 '", "8′")),
        *((f"{size} pipe", INCHES) for size in sorted(INCHES)),
        ("20V drill", {"20v", "20 volt", "20 volts"}),
        ("5 gal. bucket", {"5gal", "5 gal", "5 gal.", "5 gallon", "5 gallons"}),
        *((f"{size} lumber", {"2x4", "2 x 4", "2 by 4"}) for size in ("2x4", "2X4", "2 x 4", "2 by 4", "2x 4")),
        ("tile 1.5x4x8", {"1.5x4x8", "1.5 x 4 x 8", "1.5 by 4 by 8"}),
    ],
)
def test_every_spelling_of_a_size_is_found_whole_and_may_become_every_other(text: str, spellings: set[str]) -> None:
    (size,) = sizes(text)
    assert set(size.spellings) == spellings
    assert text[slice(*size.span)] == size.written
    assert set(respelled(size)) == spellings - {size.written.lower()}


@pytest.mark.parametrize(
    "text",
    ["3 in 1 oil", "2 in the box", "3m tape", "2 l brackets", "5 a side", "6'2\" tall", "a8ft", "8fts", "ft", "12", "8's",
     "1/2/3 ft", "8 fluid", "x 4", "8 by hand", "红色 8", "８杯"],
)  # fmt: skip
def test_what_may_be_no_size_is_left_alone(text: str) -> None:
    assert sizes(text) == []


def test_an_inner_size_of_another_is_not_taken_apart() -> None:
    assert [size.written for size in sizes("2 x 4.5ft 8 ft x 10 ft")] == ["4.5ft", "8 ft", "10 ft"]


_PARTS = [spelling for unit in UNITS for spelling in unit.spellings] + [" x ", "x", " by ", "/", ".", "-", " ", "mug"]


@given(st.lists(st.one_of(st.integers(0, 999).map(str), st.sampled_from(_PARTS), st.text(max_size=3)), max_size=8))
def test_no_respelling_changes_a_number_or_its_place_among_the_others(parts: list[str]) -> None:
    text = "".join(parts)
    for size in sizes(text):
        start, end = size.span
        for other in respelled(size):
            changed = text[:start] + other + text[end:]
            assert regex.findall(r"\d+", changed) == regex.findall(r"\d+", text)
            assert other != size.written
