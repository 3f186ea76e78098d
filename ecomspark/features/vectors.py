"""Vectors of items, by the text that an encoder read, and what is made of a shopper's many.

Sums over vectors are taken in numpy: Spark's own lambdas take a tenth of a microsecond for every number of every
vector, minutes for some thousand shoppers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F


def item_vectors(
    items: DataFrame, texts: DataFrame, embeddings: DataFrame, recipe_digest: bytes, scorer_digest: bytes
) -> DataFrame:
    """(item_id, text_digest, vector) of the items whose text an encoder has embedded as a passage."""
    made = texts.where((F.col("role") == "passage") & (F.col("recipe_digest") == F.lit(recipe_digest)))
    of = embeddings.where((F.col("role") == "passage") & (F.col("scorer_digest") == F.lit(scorer_digest)))
    read = items.select("item_id", "source_digest").join(
        made.select("source_digest", "text_digest"), on="source_digest", how="inner"
    )
    return read.join(of.select("text_digest", "vector"), on="text_digest", how="inner").select(
        "item_id", "text_digest", "vector"
    )


def by_group(
    rows: DataFrame, group: str, order: Sequence[Column], compute: Callable[[pa.Table], pa.RecordBatch], schema: str
) -> DataFrame:
    """What `compute` makes of rows, those of a group together and in order; one frame of `schema`.

    `group`: a column that names the group, without nulls. Which groups come together depends on the partitioning:
    `compute` must make of each what it would make of it alone.
    """

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return map(compute, whole_groups(batches, group))

    together = rows.repartition(group).sortWithinPartitions(group, *order)
    return together.mapInArrow(read, schema)


def whole_groups(batches: Iterator[pa.RecordBatch], group: str) -> Iterator[pa.Table]:
    """The rows of batches that are sorted by a column, cut so that no group lies in two tables. Beside the batch at
    hand only the group that the one before it ended in is held."""
    begun: list[pa.RecordBatch] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        ids = batch.column(group)
        last_begins = pc.index(ids, ids[-1]).as_py()
        is_same = bool(begun) and begun[-1].column(group)[-1] == ids[-1]
        if not is_same and (begun or last_begins):
            yield pa.Table.from_batches([*begun, batch.slice(0, last_begins)])
            begun = []
        begun.append(batch if is_same else batch.slice(last_begins))
    if begun:
        yield pa.Table.from_batches(begun)


def matrix_of(vectors: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Vectors, none null, as rows. Raises ValueError when they are not of one length."""
    widths = pc.list_value_length(vectors)
    if len(vectors) and pc.min(widths) != pc.max(widths):
        raise ValueError(f"vectors: expected one length, found {pc.min(widths)} and {pc.max(widths)}")
    numbers: NDArray[Any] = pc.list_flatten(vectors).to_numpy(zero_copy_only=False)
    rows: NDArray[np.float64] = numbers.astype(np.float64).reshape(len(vectors), -1)
    return rows


def as_vectors(rows: NDArray[Any]) -> pa.Array:
    """Rows of numbers as a column of vectors, of the numbers' own type."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1)))


def units(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1 in the same directions; those of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: NDArray[np.float64] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return directions


def starts_of(*ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """The places at which a run of rows with the same ids begins; columns of one length, without nulls, not empty."""
    is_new = np.zeros(len(ids[0]), bool)
    is_new[0] = True
    for column in ids:
        values = column.combine_chunks()
        is_new[1:] |= pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(is_new)
