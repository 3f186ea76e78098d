"""Vectors in numpy: groups that lie across batches, and what is made of each."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecomspark.features.vectors import as_vectors, matrix_of, starts_of, units, whole_groups


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(1, 4))
def test_no_group_lies_in_two_tables_and_no_row_is_lost(sizes: list[int], per_batch: int) -> None:
    ids = [f"s{number}" for number, size in enumerate(sizes) for _ in range(size)]
    table = pa.table({"id": pa.array(ids, pa.string()), "at": pa.array(range(len(ids)), pa.int64())})
    batches = table.to_batches(max_chunksize=per_batch) + table.schema.empty_table().to_batches()
    found = list(whole_groups(iter(batches), "id"))
    assert [at for part in found for at in part["at"].to_pylist()] == list(range(len(ids)))
    seen = [set(part["id"].to_pylist()) for part in found]
    assert all(part for part in seen), "no table without rows"
    assert sum(map(len, seen)) == len(sizes)
    held = max((part.num_rows for part in found), default=0)
    assert held <= per_batch + max(sizes, default=0), "a batch, and the group that was open before it"


def test_rows_of_numbers_go_to_columns_and_back() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    column = pa.chunked_array([as_vectors(rows[:1]), as_vectors(rows[1:])])
    assert matrix_of(column).tolist() == rows.tolist()
    assert matrix_of(column.slice(1)).tolist() == rows[1:].tolist(), "a slice's own numbers, not its array's"
    assert units(rows).tolist() == [[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]
    with pytest.raises(ValueError, match="one length, found 1 and 2"):
        matrix_of(pa.array([[1.0], [1.0, 2.0]]))


def test_a_run_of_rows_begins_where_any_of_its_ids_changes() -> None:
    one, other = pa.chunked_array([["a", "a"], ["b", "b"]]), pa.chunked_array([["x", "y", "y", "y"]])
    assert starts_of(one).tolist() == [0, 2]
    assert starts_of(one, other).tolist() == [0, 1, 2]
