"""The gate of a sequence model: histories to states, states to the items that come next.

As in `scoring`, Arrow goes in and out, and each worker makes the model once. What can be proposed travels as a
broadcast; the matrix of its items is made once a worker and kept until others are asked for. Memory of a worker beside
the model: 4 bytes x items x (width + 1) for the matrix, 40 bytes or so for each of the `scores_at_once`, and 64 for
each item of some hundred histories.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import Accumulator, Broadcast
from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame

from ecomspark.errors import without_values
from ecomspark.models.costs import Costs
from ecomspark.scoring import Description, ModelEngine, reported, resident

STATES = "history_digest binary, vector array<float>, item_count int"
NEXT = (
    "shopper_id string, history_digest binary, rank int, item_id string, score double, confidence double, "
    "list_confidence double"
)
SCORE_DECIMALS = 4
_CHANCE_DECIMALS = 6
_ROWS_A_CALL = 1_024  # histories handed to the model together
_HISTORIES_AT_ONCE = 128  # that are lists in Python, to see what was read again


class NextItemModel(Protocol):
    """`models.sequence.SequenceModel`, or a fake's: what the gate needs to know of it."""

    engine: ModelEngine
    max_items: int

    def states(self, histories: list[list[str]], vectors: Mapping[str, Any] | None = None) -> NDArray[np.float32]: ...
    def items(self, ids: list[str], vectors: Mapping[str, Any] | None = None) -> NDArray[np.float32]: ...
    def own(self, histories: list[list[str]]) -> list[dict[str, float]]: ...
    def confidence(self, scores: NDArray[Any], k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...


@dataclass(frozen=True)
class Shelf:
    """What can be proposed: ids in rising order, and `digest`, which names them. `vectors`: text embeddings, by id, of
    items that the model may not have learnt, whether or not they can be proposed."""

    item_ids: tuple[str, ...]
    digest: bytes
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def sequence_states(
    histories: DataFrame,
    scorer: Description,
    shelf: Broadcast[Shelf],
    costs: Accumulator[Costs] | None = None,
    profile: ResourceProfile | None = None,
) -> DataFrame:
    """The state after each history: the columns of `STATES`. `histories`: (history_digest, item_ids), ids oldest first.

    Fails when a state is not finite. Each row is evaluated once for each time the frame is executed.
    """

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with reported(costs) as spent:
            model: NextItemModel = resident(scorer, spent)
            for batch in _sliced(batches, _ROWS_A_CALL):
                histories = batch.column("item_ids").to_pylist()
                with without_values(), spent.timed("forward"):
                    states = model.states(histories, shelf.value.vectors)
                    if not np.isfinite(states).all():
                        raise ValueError("a state is not finite")
                spent.rows += batch.num_rows
                counts = pa.array([min(len(history), model.max_items) for history in histories], pa.int32())
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), states.shape[1])
                columns = [batch.column("history_digest"), vectors.cast(pa.list_(pa.float32())), counts]
                yield pa.RecordBatch.from_arrays(columns, names=["history_digest", "vector", "item_count"])

    return histories.select("history_digest", "item_ids").mapInArrow(read, STATES, profile=profile)


def next_items(
    states: DataFrame,
    scorer: Description,
    shelf: Broadcast[Shelf],
    k: int,
    scores_at_once: int,
    costs: Accumulator[Costs] | None = None,
    profile: ResourceProfile | None = None,
) -> DataFrame:
    """The k likeliest items after each state, of the shelf: the columns of `NEXT`, rows of one shopper together.

    `states`: (shopper_id, history_digest, item_ids: the history, vector, excluded: ids that are not proposed, or null).
    Scores are rounded before they are ordered, equal ones by item_id. Confidence is the model's over what can be
    proposed: of excluded items none is the next one. A shopper for whom nothing is left has no row.
    """

    def proposed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with reported(costs) as spent:
            model: NextItemModel = resident(scorer, spent)
            matrix, ids = _matrix(scorer, model, shelf.value)
            if not len(ids):
                return
            places = {item_id: place for place, item_id in enumerate(ids)}
            width = matrix.shape[1] - 1
            for batch in _sliced(batches, max(1, scores_at_once // len(ids))):
                with without_values(), spent.timed("forward"):
                    vectors = batch.column("vector").flatten().to_numpy().reshape(-1, width)
                    scores: NDArray[Any] = (vectors @ matrix[:, :width].T + matrix[:, width]).astype(np.float64)
                    for row, own in enumerate(_own(model, batch)):
                        for item_id in own.keys() & places.keys():
                            scores[row, places[item_id]] += own[item_id]
                    np.round(scores, SCORE_DECIMALS, out=scores)
                    for row, excluded in enumerate(batch.column("excluded").to_pylist()):
                        out = [places[item_id] for item_id in excluded or () if item_id in places]
                        scores[row, out] = -np.inf
                    made = _best(batch, scores, ids, *_confidence(model, scores, k))
                spent.rows += batch.num_rows
                if made.num_rows:
                    yield made

    read = states.select("shopper_id", "history_digest", "item_ids", "vector", "excluded")
    return read.mapInArrow(proposed, NEXT, profile=profile)


def _own(model: NextItemModel, batch: pa.RecordBatch) -> Iterator[dict[str, float]]:
    """What was read of each row adds to its own score, by item id."""
    for some in _sliced(iter([batch]), _HISTORIES_AT_ONCE):
        yield from model.own(some.column("item_ids").to_pylist())


_matrices: dict[tuple[Description, bytes], tuple[NDArray[np.float32], NDArray[Any]]] = {}


def _matrix(scorer: Description, model: NextItemModel, shelf: Shelf) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """The rows of the items that the model can propose, and their ids: made once in this process and kept. Others take
    their place."""
    key = (scorer, shelf.digest)
    if key not in _matrices:
        _matrices.clear()
        rows, ids = model.items(list(shelf.item_ids), shelf.vectors), np.array(shelf.item_ids, dtype=object)
        can_be = np.isfinite(rows[:, -1]) if len(ids) else np.zeros(0, dtype=bool)  # -inf: one that it cannot tell of
        _matrices[key] = (np.ascontiguousarray(rows[can_be]), ids[can_be])
    return _matrices[key]


def _confidence(
    model: NextItemModel, scores: NDArray[np.float64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The model's, of the rows for which anything is left; 0 of the others."""
    of_items: NDArray[np.float64]
    has_some = np.isfinite(scores).any(axis=1)
    of_items, of_list = np.zeros((len(scores), min(k, scores.shape[1]))), np.zeros(len(scores))
    if has_some.any():
        of_items[has_some], of_list[has_some] = model.confidence(scores[has_some], k)
    return np.round(of_items, _CHANCE_DECIMALS), np.round(of_list, _CHANCE_DECIMALS)


def best_places(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The places of the k highest of some scores, highest first, of equal ones the first.

    >>> best_places(np.array([1.0, 3.0, 3.0, 2.0, 3.0]), 3).tolist()
    [1, 2, 4]
    """
    if k < len(scores):
        least = np.partition(scores, -k)[-k]
        near = np.flatnonzero(scores >= least)  # all that equal the k-th are looked at
    else:
        near = np.arange(len(scores))
    return near[np.argsort(-scores[near], kind="stable")][:k]


def _best(
    batch: pa.RecordBatch,
    scores: NDArray[np.float64],
    ids: NDArray[Any],
    of_items: NDArray[np.float64],
    of_list: NDArray[np.float64],
) -> pa.RecordBatch:
    k = of_items.shape[1]
    best = np.array([best_places(row, k) for row in scores], dtype=np.int64)
    found = np.take_along_axis(scores, best, axis=1)
    rows, ranks = np.nonzero(np.isfinite(found))
    of_row = pa.array(rows)
    columns = [
        batch.column("shopper_id").take(of_row),
        batch.column("history_digest").take(of_row),
        pa.array((ranks + 1).astype(np.int32)),
        pa.array(ids[best[rows, ranks]], pa.string()),
        pa.array(found[rows, ranks]),
        pa.array(of_items[rows, ranks]),
        pa.array(of_list[rows]),
    ]
    names = ["shopper_id", "history_digest", "rank", "item_id", "score", "confidence", "list_confidence"]
    return pa.RecordBatch.from_arrays(columns, names=names)


def _sliced(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)
