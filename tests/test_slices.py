"""Which pairs a slice is made of, over a few rows."""

import pandas as pd

from ecomspark.slices import Bounds, by_category, by_traffic, by_words, slices_of

# query, item, grade, traffic, locale, words, category, is_new
PAIRS = pd.DataFrame(
    [
        ("q1", "a", 3, 60, "uk", 1, "Home > Mugs", False), ("q1", "b", 3, 60, "uk", 1, "Toys", True),
        ("q1", "c", 2, 60, "uk", 1, "Home > Clocks", False),
        ("q2", "a", 0, 30, "uk", 2, "Home > Mugs", False), ("q2", "d", 2, 30, "uk", 2, "Garden", True),
        ("q3", "d", 3, 20, "us", 6, "Garden", True), ("q4", "e", 0, 10, "us", 3, "Toys", True),
    ],
    columns=["query_id", "item_id", "grade", "traffic", "locale", "words", "category", "is_new"],
)  # fmt: skip


def members(name: str, pairs: pd.DataFrame = PAIRS, **bounds: object) -> list[str]:
    is_in = slices_of(pairs, Bounds(**bounds))[name]  # type: ignore[arg-type]
    return [f"{row.query_id}{row.item_id}" for row in pairs[is_in].itertuples()]


def test_the_head_begins_in_the_first_third_of_all_traffic_and_the_tail_in_the_last() -> None:
    # 60 of 120 come before q2, 90 before q3, 110 before q4; a third is 40, two are 80.
    traffic = pd.Series({"q4": 10, "q3": 20, "q2": 30, "q1": 60})
    assert by_traffic(traffic, 1 / 3, 1 / 3).to_dict() == {"q1": "head", "q2": "middle", "q3": "tail", "q4": "tail"}
    assert by_traffic(traffic, 0.6, 0.1).to_dict() == {"q1": "head", "q2": "head", "q3": "middle", "q4": "tail"}
    assert by_traffic(pd.Series({"q1": 5, "q2": 5, "q3": 5}), 1 / 3, 1 / 3).empty, "all alike: no parts"
    never = by_traffic(pd.Series({"q1": None, "q2": 7, "q3": 0}), 1 / 3, 1 / 3)
    assert never.to_dict() == {"q2": "head", "q1": "tail", "q3": "tail"}, "what was never asked is tail"


def test_equally_asked_queries_are_told_apart_by_their_id_whatever_their_order() -> None:
    traffic = pd.Series({"q3": 2, "q1": 2, "q2": 2, "q4": 1})
    expected = {"q1": "head", "q2": "head", "q3": "middle", "q4": "tail"}
    assert by_traffic(traffic, 1 / 3, 1 / 3).to_dict() == expected
    assert by_traffic(traffic.sort_index(), 1 / 3, 1 / 3).to_dict() == expected


def test_long_queries_are_one_slice() -> None:
    assert by_words(pd.Series({"q1": 1, "q2": 3, "q3": 4, "q4": 9}), 4).tolist() == ["1", "3", "4+", "4+"]


def test_a_query_is_of_the_category_that_most_of_its_relevant_items_have() -> None:
    found = by_category(PAIRS, Bounds())
    assert found.to_dict() == {"q1": "Home", "q2": "Garden", "q3": "Garden"}, "q4 has no relevant item"
    # With the whole path each of q1's items has one of its own, and the first by name is taken.
    assert by_category(PAIRS, Bounds(category_parts=2))["q1"] == "Home > Clocks"
    assert by_category(PAIRS, Bounds(categories=1)).to_dict() == {"q1": "other", "q2": "Garden", "q3": "Garden"}
    assert by_category(PAIRS, Bounds(grade_threshold=2.5)).to_dict() == {"q1": "Home", "q3": "Garden"}


def test_slices_hold_whole_queries_but_those_of_new_items() -> None:
    assert members("all") == ["q1a", "q1b", "q1c", "q2a", "q2d", "q3d", "q4e"]
    assert members("traffic=head") == ["q1a", "q1b", "q1c"]
    assert members("locale=us") == ["q3d", "q4e"]
    assert members("category=Garden") == ["q2a", "q2d", "q3d"]
    assert members("words=4+") == ["q3d"]
    assert members("words=2+", longest_words=2) == ["q2a", "q2d", "q3d", "q4e"]
    assert members("items=new") == ["q1b", "q2d", "q3d", "q4e"]
    assert members("items=seen") == ["q1a", "q1c", "q2a"]


def test_a_family_is_left_out_where_the_data_do_not_tell_its_parts_apart() -> None:
    alike = PAIRS.assign(traffic=0, locale="uk", words=2, category=None, is_new=True)
    assert list(slices_of(alike, Bounds())) == ["all"]
    assert list(slices_of(alike.assign(is_new=None), Bounds())) == ["all"], "not known what they were trained on"
    some = slices_of(alike.assign(category=["Home", *[None] * 6]), Bounds())
    assert list(some) == ["all", "category=Home"], "of the other queries nothing is known"


def test_the_long_tail_is_asked_little_and_matched_little() -> None:
    matches = PAIRS["query_id"].map({"q1": 3, "q2": 90, "q3": 4, "q4": 90})
    with_matches = PAIRS.assign(matches=matches)
    assert members("long_tail=yes", with_matches, few_matches=5) == ["q3d"], "q1 is asked often, q4 matched often"
    assert "long_tail=yes" not in slices_of(PAIRS, Bounds()), "where matches are not known"
    alike = with_matches.assign(traffic=1)
    assert members("long_tail=yes", alike, few_matches=5) == ["q1a", "q1b", "q1c", "q3d"], "all are asked alike"
