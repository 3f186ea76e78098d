"""What may be changed in a training pair, how often, and what never is."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_text import AWKWARD

from ecomspark.augmentation import Augmentation, Draws, augmented, with_typo, without_a_field, without_a_token

COUCH = {"couch": ["sofa"], "candle holder": ["candlestick", "sconce"]}
ALL = Augmentation(typos=1, token_drop=1, synonyms=1, synonyms_of=COUCH, units=1, field_drop=1)

TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(["red", "wooden", "ladder", "8 ft", "2x4", "a1b2c3", "wood3000", "not", "红色杯子", "👨‍👩‍👧", "|"])).map(" ".join),
)  # fmt: skip


def pairs(*queries: str, passage: str = "red mug | acme | kitchen > mugs") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "query_id": [f"q{place}" for place in range(len(queries))],
            "item_id": "i",
            "query_text": queries,
            "passage_text": passage,
            "grade": [place % 4 for place in range(len(queries))],
            "side": "train",
        }
    )


def digit_tokens(query: str) -> list[str]:
    return [token for token in query.split() if regex.search(r"\p{N}", token)]


def edits(one: str, other: str) -> int:
    """Edit distance with swaps of neighbours (optimal string alignment), by its definition."""
    if not one or not other:
        return len(one) + len(other)
    found = [edits(one[1:], other) + 1, edits(one, other[1:]) + 1, edits(one[1:], other[1:]) + (one[0] != other[0])]
    if one[:2] == other[1::-1] and len(one) > 1:
        found.append(edits(one[2:], other[2:]) + 1)
    return min(found)


def test_with_all_off_the_very_rows_come_back() -> None:
    train = pairs("red wooden ladder 8 ft")
    found, counts = augmented(train, Augmentation(), seed=1, epoch=1)
    assert found is train
    assert set(counts.values()) == {0}


@given(st.lists(TEXTS, max_size=4), st.integers(0, 99))
@example([""], 0)
@example(list(AWKWARD.values()), 0)
def test_no_query_breaks_it_and_only_texts_change(queries: list[str], epoch: int) -> None:
    train = pairs(*queries)
    found, counts = augmented(train, ALL, seed=1, epoch=epoch)
    fixed = ["query_id", "item_id", "grade", "side"]
    pd.testing.assert_frame_equal(found[fixed], train[fixed])
    assert all(0 <= count <= len(train) for count in counts.values())
    assert not any(made == "" for made, given in zip(found["query_text"], queries, strict=True) if given)


@given(TEXTS, st.integers(0, 99))
def test_typos_and_drops_leave_tokens_with_digits_alone(query: str, key: int) -> None:
    draws = Draws(str(key))
    assert digit_tokens(with_typo(query, draws)) == digit_tokens(query)
    assert digit_tokens(without_a_token(query, draws)) == digit_tokens(query)


@given(st.from_regex(r"[a-z]{4,6}", fullmatch=True), st.integers(0, 99))
def test_a_typo_is_one_edit_behind_the_first_letter(word: str, key: int) -> None:
    found = with_typo(f"a1 {word}", Draws(str(key))).removeprefix("a1 ")
    assert edits(word, found) == 1
    assert found[0] == word[0]


@pytest.mark.parametrize("query", ["", "mug", "红色杯子", "x1y2z3 2x4wood wood3000", "👨‍👩‍👧 cup", "a tap"])
def test_a_query_without_a_long_word_gets_no_typo(query: str) -> None:
    assert {with_typo(query, Draws(str(n))) for n in range(20)} == {query}


def test_a_dropped_token_is_none_of_a_size_or_a_negation() -> None:
    found = {without_a_token("tall ladder 8 feet not wood", Draws(str(n))) for n in range(50)}
    assert found == {"ladder 8 feet not wood", "tall 8 feet not wood"}
    assert {without_a_token("tall ladder", Draws(str(n))) for n in range(20)} == {"tall ladder"}


def test_a_dropped_field_is_never_the_title() -> None:
    found = {without_a_field("mug | acme | kitchen", Draws(str(n))) for n in range(20)}
    assert found == {"mug | acme", "mug | kitchen"}
    assert without_a_field("mug", Draws("1")) == "mug"


def test_synonyms_replace_whole_words_and_phrases_one_at_a_time() -> None:
    settings = Augmentation(synonyms=1, synonyms_of=COUCH)
    many = pairs(*["Couch with candle holder"] * 40, *["couches and candles"] * 5)
    found, counts = augmented(many, settings, seed=1, epoch=1)
    assert set(found["query_text"]) == {
        "sofa with candle holder", "Couch with candlestick", "Couch with sconce", "couches and candles",
    }  # fmt: skip
    assert counts["synonyms"] == 40


def test_shares_are_met_each_by_its_own_draws() -> None:
    # 2,000 draws: three standard deviations of a share of 0.3 are 0.031.
    train = pairs(*[f"wooden ladder number {n} of 8 ft" for n in range(2_000)])
    kinds = ("typos", "token_drop", "units", "field_drop")
    alone = {kind: augmented(train, Augmentation(**{kind: 0.3}), seed=1, epoch=1) for kind in kinds}
    for kind, (found, counts) in alone.items():
        assert counts[kind] == pytest.approx(600, abs=62)
        changed = (found["query_text"] != train["query_text"]) | (found["passage_text"] != train["passage_text"])
        assert changed.sum() == sum(counts.values()) == counts[kind]
    _, together = augmented(train, Augmentation(**dict.fromkeys(kinds, 0.3)), seed=1, epoch=1)
    assert {kind: together[kind] for kind in kinds} == {kind: alone[kind][1][kind] for kind in kinds}
    touched = [set(found.index[found["query_text"] != train["query_text"]]) for found, _ in alone.values()]
    assert len(touched[0] & touched[1]) == pytest.approx(180, abs=38), "independent: 0.09 of the pairs have both"


def test_a_pair_is_changed_alike_wherever_it_stands_and_anew_by_seed_and_epoch() -> None:
    train = pairs(*[f"wooden ladder number {n} of 8 ft" for n in range(50)])
    found, _ = augmented(train, ALL, seed=1, epoch=1)
    turned, _ = augmented(train[::-1], ALL, seed=1, epoch=1)
    pd.testing.assert_frame_equal(turned[::-1], found)
    for seed, epoch in ((2, 1), (1, 2)):
        assert (augmented(train, ALL, seed=seed, epoch=epoch)[0]["query_text"] != found["query_text"]).mean() > 0.5


def test_pairs_of_a_query_get_one_text_where_it_is_asked_for() -> None:
    train = pairs(*["wooden ladder 8 ft"] * 30).assign(query_id="q", item_id=[str(n) for n in range(30)])
    one, _ = augmented(train, ALL, seed=1, epoch=1, is_one_text_a_query=True)
    assert one["query_text"].nunique() == 1
    assert one["passage_text"].nunique() == 2, "passages are drawn by pair all the same"
    assert augmented(train, ALL, seed=1, epoch=1)[0]["query_text"].nunique() > 5


def test_another_process_changes_the_same(tmp_path: object) -> None:
    # Python's own hash differs between these two; what is drawn must not.
    program = (
        "from test_augmentation import ALL, pairs; from ecomspark.augmentation import augmented;"
        "print(list(augmented(pairs('wooden couch 8 ft', 'red candle holder 2x4'), ALL, 1, 1)[0]['query_text']))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_rows_of_another_side_are_refused_by_their_count() -> None:
    beside = pairs("red mug", "blue mug").assign(side=["train", "validation"])
    for settings in (ALL, Augmentation()):
        with pytest.raises(ValueError, match="1 rows of another side"):
            augmented(beside, settings, seed=1, epoch=1)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    for wrong in (
        {"typos": 1.5},
        {"synonyms": 0.1},
        {"synonyms_of": {"couch": []}},
        {"synonyms_of": {"a": ["a"]}},
        {"typo": 1},
    ):
        with pytest.raises(ValidationError):
            Augmentation.model_validate(wrong)
