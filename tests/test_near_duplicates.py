"""Queries that are nearly the same: each rule over a few texts, the edit search against brute force."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecomspark import near_duplicates
from ecomspark.near_duplicates import CHARACTERS_AN_EDIT, followed, groups, leaks, near_pairs
from ecomspark.text import Analyser

ENGLISH = Analyser(language="english")


def rules(*texts: str, **more: object) -> dict[tuple[str, str], str]:
    pairs = near_pairs(texts, analysers=ENGLISH, **more)  # type: ignore[arg-type]
    return {(texts[row.left], texts[row.right]): row.rule for row in pairs.itertuples()}


def pairs_of(*given: tuple[int, int, str]) -> pd.DataFrame:
    return pd.DataFrame(given, columns=["left", "right", "rule"])


@pytest.mark.parametrize(
    ("one", "other"),
    [("red mugs", "Mug, RED"), ("2x4 board", "boards 2 x 4"), ("café table", "cafe tables"), ("外套", "外套!")],
)
def test_the_same_terms_in_any_order_are_one_wish(one: str, other: str) -> None:
    assert rules(one, other) == {(one, other): "tokens"}
    assert rules(one, other + " new") == {}


@pytest.mark.parametrize(
    ("one", "other", "is_near"),
    [
        ("teapot", "teaptos", False),  # two edits of six characters
        ("teapot", "tepaot", True),  # neighbours swapped: one edit
        ("mug", "mugg", False),  # too short for an edit
        ("kitchenaide dishwasher", "kitchen aid dishwasher", True),
        ("wall clock red", "wall clock blue", False),
    ],
)
def test_an_edit_for_each_six_characters_is_allowed_and_two_at_most(one: str, other: str, is_near: bool) -> None:
    assert rules(one, other) == ({(one, other): "edits"} if is_near else {})
    assert rules(one, other, max_edits=0) == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [("8 ft step ladder", "6 ft step ladder"), ("12v cordless drill", "21v cordless drill"),
     ("1.5 inch pipe elbow", "15 inch pipe elbow"), ("shelf 3 tiers white", "shelf tiers white")],
)  # fmt: skip
def test_another_number_is_another_query_by_every_rule(one: str, other: str) -> None:
    assert rules(one, other, vectors=np.ones((2, 4))) == {}


def test_vectors_of_one_direction_are_near_whatever_their_length() -> None:
    vectors = np.array([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [0.0, 0.0]])
    assert rules("sofa", "couch", "lamp", "", vectors=vectors) == {("sofa", "couch"): "cosine"}
    assert rules("sofa", "couch", "lamp", "", vectors=vectors, min_cosine=0.999) == {}


def test_blocks_of_the_matrix_product_leave_no_pair_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_ROWS_A_BLOCK", 3)
    vectors = np.random.default_rng(3).normal(size=(20, 2))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = {(i, j) for i in range(20) for j in range(i + 1, 20) if unit[i] @ unit[j] >= 0.92}
    found = near_pairs([chr(ord("a") + i) for i in range(20)], vectors)
    assert set(zip(found["left"], found["right"], strict=True)) == expected
    assert expected


def test_an_encoder_that_tells_nothing_apart_is_said() -> None:
    texts = [chr(ord("가") + i) for i in range(300)]
    with pytest.raises(ValueError, match="cosine: more than 100 near-duplicates a text"):
        near_pairs(texts, np.ones((300, 2)))


def osa(one: str, other: str) -> int:
    """Optimal string alignment by its recurrence (Boytsov 2011, section 2.2)."""
    rows = [[max(i, j) if not i or not j else 0 for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (one[i - 1] != other[j - 1]))
            if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


@pytest.mark.parametrize("at_once", [2_000_000, 50])
@given(texts=st.lists(st.text("ab1", min_size=4, max_size=14), max_size=12))
@settings(max_examples=150, deadline=None)
def test_the_edit_search_finds_what_comparing_all_with_all_finds(at_once: int, texts: list[str]) -> None:
    before, near_duplicates._VARIANTS_AT_ONCE = near_duplicates._VARIANTS_AT_ONCE, at_once
    try:
        found = near_pairs(texts)
    finally:
        near_duplicates._VARIANTS_AT_ONCE = before

    def numbers(text: str) -> list[str]:
        return sorted(part for part in text.replace("a", " ").replace("b", " ").split())

    expected = {
        (i, j)
        for i, one in enumerate(texts)
        for j, other in enumerate(texts)
        if i < j and one != other and numbers(one) == numbers(other)
        and osa(one, other) <= min(2, min(len(one), len(other)) // CHARACTERS_AN_EDIT)
    }  # fmt: skip
    of_tokens = set(found.loc[found["rule"] == "tokens", ["left", "right"]].itertuples(index=False, name=None))
    of_edits = set(found.loc[found["rule"] == "edits", ["left", "right"]].itertuples(index=False, name=None))
    assert of_edits == expected - of_tokens


def test_groups_are_what_pairs_connect_over_others() -> None:
    assert groups(5, pairs_of((0, 2, "edits"), (2, 4, "cosine"))).tolist() == [0, 1, 0, 2, 0]


def test_a_new_query_follows_its_group_and_a_new_group_its_smallest_query_id() -> None:
    ids = [b"a", b"b", b"c", b"d", b"e", b"f"]
    sides = [None, "train", None, "test", None, None]
    pairs = pairs_of((0, 1, "tokens"), (2, 3, "edits"), (1, 2, "cosine"), (4, 5, "tokens"))
    found = followed(ids, sides, pairs)
    assert list(found["at"]) == [0, 2, 4, 5], "those that have a side keep it"
    assert list(found["side"]) == ["test", "test", None, None], "of a group on two sides the strictest"
    assert list(found["leader_id"])[2:] == [b"e", b"e"]
    alone = followed([b"a", b"b"], [None, None], pairs_of())
    assert list(alone["leader_id"]) == [b"a", b"b"]


def test_a_leak_is_told_once_by_the_strictest_side_and_the_first_rule() -> None:
    sides = ["train", "validation", "test", "train", "train"]
    pairs = pairs_of((0, 1, "tokens"), (0, 2, "cosine"), (1, 2, "edits"), (3, 4, "tokens"))
    assert leaks(pairs, sides).to_dict("records") == [
        {"at": 0, "side": "train", "near_side": "test", "rule": "cosine"},
        {"at": 1, "side": "validation", "near_side": "test", "rule": "edits"},
    ]
    assert leaks(pairs_of(), sides).empty
