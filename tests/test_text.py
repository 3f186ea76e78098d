"""Texts and terms: what is dropped, what is kept, what never changes. The bad-input list at every text entry."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ecomspark import text
from ecomspark.text import Analyser, TextRecipe

RECIPE = TextRecipe()
ENGLISH = Analyser(language="english")

# One of each kind that a text entry must live with.
AWKWARD = {
    "empty": "",
    "spaces only": " \t\n ",
    "NUL": "red\0mug",
    "BOM": "\ufeffred mug",
    "lone surrogate": "red \ud800mug",
    "NFC": "caf\u00e9",
    "NFD": "cafe\u0301",
    "ZWJ emoji": "👨\u200d👩\u200d👧 mug",
    "RLO": "red \u202egum",
    "Chinese": "红色杯子",
    "Japanese": "赤いマグカップ",
    "Thai": "แก้วสีแดง",
    "full-width": "ＲＥＤ　ＭＵＧ",
    "one long word": "a" * 100_000,
    "HTML": "<p>red</p><script>alert(1)</script> mug",
    "formula": "=1+1",
    "template": "{{7*7}} ${x} %s",
    "SQL": "'; DROP TABLE x --",
    "path": "../../etc/passwd",
    "control": "red\x07\x1bmug",
}


@pytest.mark.parametrize("awkward", AWKWARD.values(), ids=AWKWARD.keys())
def test_no_text_breaks_a_recipe(awkward: str) -> None:
    normalised = text.normalise_query(awkward)
    assert text.normalise_query(normalised) == normalised
    assert len(normalised) <= text.IDENTITY_MAX_CHARACTERS
    made, cut = text.query(awkward, RECIPE)
    assert len(made) <= RECIPE.query_max_characters
    assert cut >= 0
    made, _ = text.passage({"title": awkward, "description": awkward}, RECIPE)
    assert len(made) <= sum(RECIPE.fields.values()) + 3
    assert all(term and len(term) <= 64 for term in text.terms(awkward, ENGLISH))
    assert len(text.digest(awkward)) == 16


def test_twins_of_a_text_are_one_query() -> None:
    assert text.normalise_query(AWKWARD["NFC"]) == text.normalise_query(AWKWARD["NFD"])
    assert text.normalise_query(AWKWARD["BOM"]) == text.normalise_query(AWKWARD["full-width"]) == "red mug"
    assert text.normalise_query(AWKWARD["spaces only"]) == ""
    assert text.normalise_query(AWKWARD["RLO"]) == "red gum"


def test_identity_recipe_1_never_changes() -> None:
    # query_ids are made of these: a change here would make every query a new one.
    assert text.IDENTITY_RECIPE_DIGEST.hex() == text.digest("identity", "1").hex()
    assert text.normalise_query("  Straße,  CAFÉ №5 ﬁne½ İstanbul ") == "strasse, café no5 fine1⁄2 i̇stanbul"
    assert text.digest("uk", text.normalise_query("Red  MUG")).hex() == "fbab464485c88089d62bbf9a0b5aa7a1"


@given(st.text(max_size=300))
@example("\u0345\u03b1")  # casefolding and composing swap these two unless it is done until it settles
@example("ΐ")
def test_normalising_twice_is_normalising_once(raw: str) -> None:
    once = text.normalise_query(raw)
    assert text.normalise_query(once) == once
    assert once == once.strip()
    assert "  " not in once
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in once)


@given(st.lists(st.one_of(st.none(), st.text(max_size=8)), max_size=4), st.lists(st.text(max_size=8), max_size=4))
def test_digests_tell_sequences_apart(one: list[str | None], other: list[str]) -> None:
    assert (text.digest(*one) == text.digest(*other)) == (one == other)


def test_ten_million_characters_cost_no_more_than_the_cap() -> None:
    # Each step is handed at most a few caps' worth of characters: counted, not timed.
    seen: list[int] = []

    class Counting(str):
        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            part = super().__getitem__(key)
            seen.append(len(part))
            return part

    huge = Counting("red mug " * 1_250_000)
    made, cut = text.passage({"title": huge}, RECIPE)
    assert made.startswith("red mug red mug")
    assert cut == pytest.approx(10_000_000 - 200, abs=8)
    text.normalise_query(huge)
    text.query(huge, RECIPE)
    text.terms(huge, ENGLISH)
    assert max(seen[:1] + [n for n in seen if n < 10_000_000]) <= 8_000


def test_a_cut_does_not_break_a_word_unless_there_is_only_one() -> None:
    recipe = TextRecipe(fields={"title": 10})
    assert text.passage({"title": "red ceramic mug"}, recipe) == ("red", len("red ceramic mug") - 3)
    assert text.passage({"title": "red mug ab c"}, recipe) == ("red mug ab", 2)
    assert text.passage({"title": "x" * 30}, recipe) == ("x" * 10, 20)


def test_fields_come_in_the_recipes_order_and_empty_ones_leave_no_trace() -> None:
    item = {"title": "Mug", "brand": " ", "category": None, "attributes": "colour: red", "description": "<b>Nice</b>"}
    assert text.passage(item, RECIPE)[0] == "mug | colour: red | nice"
    turned = TextRecipe(fields={"description": 50, "title": 50})
    assert text.passage(item, turned)[0] == "nice | mug"
    cased = TextRecipe(is_lowercase=False, fields={"title": 50})
    assert text.passage(item, cased)[0] == "Mug"


def test_html_is_off_and_what_only_looks_like_it_stays() -> None:
    assert text.passage({"title": "a < b & c <3"}, RECIPE)[0] == "a < b & c <3"
    assert text.passage({"title": "x<br>y &amp; z<style>p{}</style>"}, RECIPE)[0] == "x y & z"


def test_every_setting_of_a_recipe_or_analyser_is_in_its_digest() -> None:
    changed = (
        TextRecipe(is_lowercase=False),
        TextRecipe(query_max_characters=100),
        TextRecipe(fields={"title": 201}),
        TextRecipe(fields=dict(reversed(RECIPE.fields.items()))),
    )
    assert len({RECIPE.digest, *(recipe.digest for recipe in changed)}) == 5
    assert set(TextRecipe.model_fields) == {"number", "is_lowercase", "query_max_characters", "fields"}
    analysers = (Analyser(), ENGLISH, Analyser(language="spanish"), Analyser(max_characters=5))
    assert len({analyser.digest for analyser in analysers}) == 4


def test_terms_split_letters_from_digits_and_stem() -> None:
    assert text.terms("2x4ft CHILDREN'S mugs", ENGLISH) == ["2", "x", "4", "ft", "children", "mug"]
    assert text.terms("children’s", ENGLISH) == text.terms("childrens", ENGLISH)
    assert text.terms("mugs", Analyser()) == ["mugs"]


def test_accents_go_in_latin_and_greek_only() -> None:
    assert text.terms("crème brûlée Ñ", Analyser()) == ["creme", "brulee", "n"]
    assert text.terms("йод", Analyser()) == ["йод"], "a Cyrillic letter of its own, not an accent"
    assert text.terms("ガギ", Analyser()) == ["ガギ"], "voicing marks are not accents"
    assert text.terms("हिन्दी", Analyser()) == ["हिन्दी"], "vowel signs are not accents"


def test_scripts_without_spaces_become_bigrams_with_latin_words_inside_kept() -> None:
    assert text.terms("红色iPhone15手机壳", ENGLISH) == ["红色", "iphon", "15", "手机", "机壳"]
    assert text.terms("杯", ENGLISH) == ["杯"]
    assert text.terms("แก้ว mug", ENGLISH) == ["แก", "ก้", "้ว", "mug"]
