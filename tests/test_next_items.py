"""The gate of a sequence model, without Spark: which items are best, in which order, and what it keeps."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecomspark import next_items as gate
from ecomspark.next_items import Shelf, best_places


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5, -np.inf]), min_size=1, max_size=30), st.integers(1, 35))
def test_the_best_are_the_highest_and_of_equal_ones_the_first(scores: list[float], k: int) -> None:
    wanted = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    assert best_places(np.array(scores), k).tolist() == wanted


def test_a_list_holds_what_is_left_and_a_shopper_with_nothing_left_has_none() -> None:
    batch = pa.RecordBatch.from_pydict({"shopper_id": ["a", "b", "c"], "history_digest": [b"1", b"2", b"3"]})
    scores = np.array([[1.0, 2.0, -np.inf], [-np.inf, -np.inf, -np.inf], [0.5, 0.5, 0.25]])
    of_items = np.array([[0.6, 0.3], [0.0, 0.0], [0.4, 0.4]])
    ids = np.array(["x", "y", "z"], dtype=object)
    made = gate._best(batch, scores, ids, of_items, np.array([0.9, 0.0, 0.8])).to_pydict()
    assert made["shopper_id"] == ["a", "a", "c", "c"]
    assert made["item_id"] == ["y", "x", "x", "y"], "of equal scores the smaller id"
    assert made["rank"] == [1, 2, 1, 2]
    assert made["score"] == [2.0, 1.0, 0.5, 0.5]
    assert made["list_confidence"] == [0.9, 0.9, 0.8, 0.8]


def test_a_matrix_is_made_once_for_a_shelf_and_has_no_item_that_cannot_be_proposed() -> None:
    from fake_sequences import TracedSequence, TracedSequenceModel

    class Counted(TracedSequenceModel):
        made = 0

        def items(self, ids, vectors=None):  # type: ignore[no-untyped-def]
            Counted.made += 1
            return np.array([[1.0, 0, 0, 0, -np.inf if item == "new" else 0.0] for item in ids], dtype=np.float32)

    description = TracedSequence("/nowhere")
    model, shelf = Counted(description), Shelf(("a", "new", "z"), b"one")
    for _ in range(2):
        matrix, ids = gate._matrix(description, model, shelf)
        assert (ids.tolist(), matrix.shape) == (["a", "z"], (2, 5))
    assert Counted.made == 1
    gate._matrix(description, model, Shelf(("a",), b"two"))
    assert Counted.made == 2
    assert len(gate._matrices) == 1, "others take its place"
    assert gate._matrix(description, model, Shelf((), b"none"))[1].tolist() == []


@pytest.mark.parametrize(("rows", "sizes"), [(2, [2, 2, 1, 1]), (10, [5, 1])])
def test_rows_are_handed_on_in_small_parts(rows: int, sizes: list[int]) -> None:
    batches = [pa.RecordBatch.from_pydict({"x": list(range(5))}), pa.RecordBatch.from_pydict({"x": [5]})]
    parts = list(gate._sliced(iter(batches), rows))
    assert [part.num_rows for part in parts] == sizes
    assert [x for part in parts for x in part.column("x").to_pylist()] == list(range(6))
