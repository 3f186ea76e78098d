"""What teachers say of a pair: mixed into grades, and alone for candidates that nobody judged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ecomspark.models.distillation import distilled
from ecomspark.models.options import Distillation, Training

TRAIN = pd.DataFrame(
    [("q1", "red mug", "i1", "mug, red", 3.0), ("q1", "red mug", "i2", "cup", 1.0), ("q2", "lamp", "i3", "light", 2.0)],
    columns=["query_id", "query_text", "item_id", "passage_text", "grade"],
).assign(side="train")
CANDIDATES = pd.DataFrame(
    [("q1", "i2", "cup", 1), ("q1", "i5", "red jug", 2), ("q1", "i4", "pot", 3), ("q2", "i6", "sun", 1), ("q9", "i1", "mug, red", 1)],
    columns=["query_id", "item_id", "passage_text", "place"],
)  # fmt: skip


def half(queries: Sequence[str], passages: Sequence[str]) -> Any:
    """0.5 of everything, but of what it has not heard of."""
    assert len(queries) == len(passages)
    return np.array([np.nan if passage in ("cup", "sun") else 0.5 for passage in passages])


def made(share: float = 0.25, candidates: int = 0, judged: pd.DataFrame = TRAIN) -> tuple[pd.DataFrame, dict[str, int]]:
    settings = Distillation(teachers=["a"], share=share, candidates_per_query=candidates)
    return distilled(TRAIN, CANDIDATES, judged, half, settings, [1, 2, 3])


def test_a_grade_is_in_part_the_teachers_and_stays_where_they_say_nothing() -> None:
    rows, counts = made()
    assert list(rows["grade"]) == [0.75 * 3 + 0.25 * 2, 1.0, 2.0]
    assert counts == {"pairs": 3}
    assert list(made(share=1.0)[0]["grade"]) == [2.0, 1.0, 2.0]


def test_candidates_that_nobody_judged_get_the_teachers_grade_best_places_first() -> None:
    """i2 is judged, i6 is what they say nothing of, q9 is of another side."""
    rows, counts = made(candidates=1)
    assert list(rows["item_id"]) == ["i1", "i2", "i5", "i3"]
    assert rows.loc[2].to_dict() == {
        "query_id": "q1", "query_text": "red mug", "item_id": "i5", "passage_text": "red jug", "grade": 2.0, "side": "train"
    }  # fmt: skip
    assert counts == {"pairs": 3, "candidates": 1}
    assert set(made(candidates=2)[0]["item_id"]) == {"i1", "i2", "i3", "i4", "i5"}


def test_what_was_judged_on_another_side_is_not_a_candidate() -> None:
    elsewhere = pd.concat([TRAIN, TRAIN.assign(query_id="q1", item_id="i5", side="validation")])
    assert set(made(candidates=1, judged=elsewhere)[0]["item_id"]) == {"i1", "i2", "i3", "i4"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"distillation": {"candidates_per_query": 1}}, "teachers names none"),
        ({"distillation": {"teachers": ["a", "a"]}}, "each at most once"),
        ({"distillation": {"teachers": ["a"]}, "head": "lambda"}, "needs a head of bce or mse"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Training.model_validate(settings)
