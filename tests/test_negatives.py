"""Which candidates without a judgment are taken for irrelevant, and which the guard takes out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ecomspark.negatives import REASONS, HardNegatives, mined

GRADES = (0, 1, 2, 3)
ONE = HardNegatives(per_query=1, skip_first=0)
MANY = HardNegatives(per_query=9, skip_first=0)

# Query q, of which a red mug (3) and a red cup (2) are relevant, a lamp (0) is not; v is a validation query.
JUDGED = pd.DataFrame(
    [
        ("q", "red mug", "i1", "red mug 300 ml", 3, "train"),
        ("q", "red mug", "i2", "scarlet cup", 2, "train"),
        ("q", "red mug", "i3", "desk lamp", 0, "train"),
        ("v", "blue mug", "i4", "blue mug", 3, "validation"),
    ],
    columns=["query_id", "query_text", "item_id", "passage_text", "grade", "side"],
)
NEAR = {"red mug 300 ml": 0.9, "scarlet cup": 0.7, "desk lamp": 0.1, "blue mug": 0.9}


def candidates(*given: tuple[Any, ...]) -> pd.DataFrame:
    """(item_id, passage_text) of query q, or (query_id, item_id, passage_text); places as given."""
    whole = [row if len(row) == 3 else ("q", *row) for row in given]
    rows = [(*row, place) for place, row in enumerate(whole, start=1)]
    return pd.DataFrame(rows, columns=["query_id", "item_id", "passage_text", "place"])


class Teacher:
    """Says how near a passage is, whatever the query, and remembers of what it was asked."""

    def __init__(self, **near: float) -> None:
        self._near = NEAR | {passage.replace("_", " "): value for passage, value in near.items()}
        self.asked: list[str] = []

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Any:
        assert len(queries) == len(passages)
        self.asked += passages
        return np.array([self._near[passage] for passage in passages])


def taken(found: tuple[pd.DataFrame, dict[str, int]]) -> list[str]:
    return list(found[0]["item_id"])


def left_out(found: tuple[pd.DataFrame, dict[str, int]]) -> dict[str, int]:
    return {reason: count for reason, count in found[1].items() if count and reason != "taken"}


def test_none_are_taken_by_default() -> None:
    teacher = Teacher()
    found, counts = mined(candidates(("a", "red plate")), JUDGED, teacher, HardNegatives(), GRADES)
    assert found.empty
    assert list(found.columns) == [*JUDGED.columns, "is_mined"]
    assert set(counts) == {*REASONS, "taken"}
    assert teacher.asked == []


def test_the_guard_takes_out_a_false_negative_that_is_the_hardest_otherwise() -> None:
    # A twin of the red mug in other words: nobody judged it, and it comes first. 0.95 x lowest(0.9, 0.7) = 0.665.
    given = candidates(("twin", "mug of red clay"), ("plate", "red plate"), ("jug", "blue jug"))
    teacher = Teacher(mug_of_red_clay=0.68, red_plate=0.6, blue_jug=0.2)
    unguarded = ONE.model_copy(update={"max_share_of_positive": 1.0, "relevant_from": 3})
    assert taken(mined(given, JUDGED, teacher, unguarded, GRADES)) == ["twin"]
    found = mined(given, JUDGED, teacher, ONE, GRADES)
    assert left_out(found) == {"near_relevant": 1, "beyond_count": 1}
    (example,) = found[0].to_dict("records")
    assert example == {
        "query_id": "q", "query_text": "red mug", "item_id": "plate", "passage_text": "red plate",
        "grade": 0, "side": "train", "is_mined": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("of_positives", "relevant_from", "is_taken"),
    # Of 0.95 x mean(0.9, 0.7) = 0.76, x lowest = 0.665, x 0.9 (grade 3 alone) = 0.855, x mean with the lamp = 0.54.
    [("mean", None, True), ("lowest", None, False), ("lowest", 3, True), ("mean", 0, False)],
)
def test_a_candidate_is_held_against_the_relevant_items_as_the_settings_say(
    of_positives: str, relevant_from: float | None, is_taken: bool
) -> None:
    settings = ONE.model_copy(update={"of_positives": of_positives, "relevant_from": relevant_from})
    found = mined(candidates(("plate", "red plate")), JUDGED, Teacher(red_plate=0.7), settings, GRADES)
    assert left_out(found) == ({} if is_taken else {"near_relevant": 1})


def test_a_bound_of_its_own_and_what_the_teacher_could_not_say() -> None:
    given = candidates(("plate", "red plate"), ("jug", "blue jug"), ("odd", "odd"))
    teacher = Teacher(red_plate=0.6, blue_jug=0.2, odd=np.nan)
    found = mined(given, JUDGED, teacher, MANY.model_copy(update={"max_similarity": 0.5}), GRADES)
    assert taken(found) == ["jug"]
    assert left_out(found) == {"too_similar": 1, "not_finite": 1}


def test_what_reads_as_a_relevant_item_or_as_another_candidate_is_left_out_unasked() -> None:
    given = candidates(
        ("same", "red mug 300 ml"), ("turned", "Mug, red: 300ml"), ("lamp", "desk lamp tall"), ("plate", "red plate"),
        ("plates", "plate red"), ("none", "***"),
    )  # fmt: skip
    teacher = Teacher(desk_lamp_tall=0.3, red_plate=0.2, **{"***": 0.1})
    found = mined(given, JUDGED, teacher, MANY, GRADES)
    assert taken(found) == ["lamp", "none", "plate"]
    assert left_out(found) == {"reads_as_relevant": 2, "reads_as_another": 1}
    assert "plate red" not in teacher.asked


def test_first_places_and_judged_pairs_are_left_out_whatever_their_grade() -> None:
    given = candidates(("first", "red plate"), ("i3", "desk lamp"), ("third", "blue jug"))
    found = mined(given, JUDGED, Teacher(blue_jug=0.2), MANY.model_copy(update={"skip_first": 1}), GRADES)
    assert taken(found) == ["third"]
    assert left_out(found) == {"first_places": 1, "judged": 1}


def test_only_training_queries_get_any() -> None:
    given = candidates(("v", "a", "red plate"), ("unknown", "b", "blue jug"), ("q", "i4", "red plate"))
    found = mined(given, JUDGED, Teacher(red_plate=0.2), MANY, GRADES)
    assert set(found[0]["query_id"]) == {"q"}
    assert left_out(found) == {"not_a_training_query": 2}


@pytest.mark.parametrize("near", [0.0, -0.5, np.nan])
def test_without_a_relevant_item_that_the_teacher_sees_nothing_can_be_said(near: float) -> None:
    given = candidates(("plate", "red plate"))
    blind = Teacher(red_plate=-0.9, red_mug_300_ml=near, scarlet_cup=near)
    assert left_out(mined(given, JUDGED, blind, MANY, GRADES)) == {"nothing_relevant": 1}
    irrelevant = JUDGED.assign(grade=1)
    assert left_out(mined(given, irrelevant, Teacher(red_plate=0.1), MANY, GRADES)) == {"nothing_relevant": 1}


def test_the_order_of_rows_changes_nothing() -> None:
    given = candidates(*((f"i{n}0", f"plate {n}") for n in range(8)), ("i05", "plate 1 1"))
    teacher = Teacher(**{f"plate {n}": 0.4 for n in range(8)})
    settings = HardNegatives(per_query=3, skip_first=1)
    found, counts = mined(given, JUDGED, teacher, settings, GRADES)
    turned, same = mined(given[::-1], JUDGED[::-1], teacher, settings, GRADES)
    pd.testing.assert_frame_equal(found, turned)
    assert counts == same
    assert sum(counts.values()) == len(given)
    assert left_out((found, counts)) == {"first_places": 1, "reads_as_another": 1, "beyond_count": 4}
    assert list(found["item_id"]) == ["i10", "i20", "i30"], "equals are ordered by item_id"
