"""The nearest of many vectors to each query by cosine, exactly or by an index. Numpy and FAISS: no Spark, no models.

A score is the cosine in float64, rounded to 1e-6; equal scores are ordered by place. Exactly: products of matrices in
float32 say which vectors may be among the best, `MARGIN` more than asked for are kept and computed again in float64,
and a query for which the error of float32 does not rule out all others is done again with more, at last with all. So
what comes out does not depend on how vectors and queries were cut into parts and blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecomspark.errors import ConfigError

DECIMALS = 6
_HALF_STEP = 0.5e-6
MARGIN = 32
_WIDER = 4  # times as many are kept when a query is done again
_UNIT = 2.0**-24  # the largest relative error of one rounding to float32
_MIB = 2**20
_SLAB = 256  # vectors that are computed with in float64 at a time
_BUILD_BREADTH = 200  # candidates looked at for the links of a vector that comes in
_LINKS_BYTES = 8  # of one of `links`, twice as many on HNSW's lowest level, four bytes each
_BESIDE = 64  # bytes a vector for levels, offsets, length and order


@dataclass(frozen=True)
class Room:
    """How a task's memory is used: so many vectors in a part, so many queries scored against all of them at a time."""

    vectors: int
    rows: int
    dimensions: int

    @classmethod
    def of(cls, mib: int, dimensions: int) -> "Room":
        """Half for a part's vectors, half for what is computed of them. Raises ConfigError when nothing fits in."""
        half = max(0, mib * _MIB - _SLAB * 24 * dimensions) // 2
        vectors = half // (4 * dimensions + _BESIDE)
        rows = half // max(1, 4 * vectors + 24 * dimensions)
        if vectors < 1 or rows < 1:
            raise ConfigError(f"block_mib: expected room for vectors of {dimensions:,} numbers, found {mib} MiB")
        return cls(vectors, rows, dimensions)

    @property
    def bytes(self) -> int:
        """What a task takes at most, beside Arrow's own batches and what `Found` of one batch of queries takes."""
        of_vectors = self.vectors * (4 * self.dimensions + _BESIDE)
        return of_vectors + self.rows * (4 * self.vectors + 24 * self.dimensions) + _SLAB * 24 * self.dimensions


def indexed_vectors(mib: int, dimensions: int, links: int) -> int:
    """How many vectors an approximate index may have in so much memory: each stands in it, and beside it as it came."""
    vectors = mib * _MIB // (8 * dimensions + _LINKS_BYTES * links + _BESIDE)
    if vectors < 1:
        raise ConfigError(f"index_mib: expected room for vectors of {dimensions:,} numbers, found {mib} MiB")
    return vectors


@dataclass(frozen=True)
class Found:
    """The best vectors of some queries, query by query, the best first: rows of the queries, places of the vectors,
    scores. `widened`: how often a query was done again."""

    queries: NDArray[np.int64]
    places: NDArray[np.int64]
    scores: NDArray[np.float64]
    widened: int = 0


class Block:
    """Vectors that are searched together, at the places in which they were put in. One of length zero is as far from
    everything as a right angle: its cosines are 0."""

    def __init__(self, count: int, dimensions: int) -> None:
        self.vectors: NDArray[np.float32] = np.empty((count, dimensions), np.float32)
        self.lengths: NDArray[np.float64] = np.empty(count, np.float64)
        self._inverse: NDArray[np.float32] = np.empty(count, np.float32)
        self.filled = 0

    @classmethod
    def of(cls, vectors: NDArray[Any]) -> "Block":
        made = cls(*vectors.shape)
        made.put(vectors)
        return made

    def put(self, vectors: NDArray[Any]) -> None:
        """Put vectors behind those that are there, shape (rows, dimensions)."""
        for slab in _slabs(len(vectors)):
            rows = slice(self.filled, self.filled + slab.stop - slab.start)
            self.vectors[rows] = vectors[slab]
            self.lengths[rows] = lengths_of(self.vectors[rows])
            self._inverse[rows] = 1.0 / self.lengths[rows]
            self.filled = rows.stop

    def nearest(self, queries: NDArray[Any], count: int, rows: int) -> Found:
        """The best `count` vectors of each query, or all that there are. `rows`: queries scored at a time."""
        if self.filled < len(self.vectors):
            raise ValueError(f"expected {len(self.vectors)} vectors, found {self.filled} put in")
        found, widened = [], 0
        for start in range(0, len(queries), rows):
            asked = np.ascontiguousarray(queries[start : start + rows], dtype=np.float32)
            of_asked = lengths_of(asked)
            scores = _unit(asked, of_asked) @ self.vectors.T
            scores *= self._inverse
            for row, near in enumerate(scores):
                places, values, times = self._best(asked[row], of_asked[row], near, count)
                found.append((start + row, places, values))
                widened += times
        return _together(found, widened)

    def _best(
        self, query: NDArray[np.float32], length: float, near: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
        """The best places for one query, `near` being its scores in float32; and how often it was done again."""
        whole, keep, times = len(near), count + MARGIN, 0
        bound = error_bound(self.vectors.shape[1])
        while keep < whole:
            kept = np.argpartition(near, whole - keep)[whole - keep :]
            places, values = self.ordered(query, length, np.sort(kept), count)
            # What was not kept is no better than the least that was: were it the last of the best, it would show.
            if float(near[kept].min()) + bound < values[-1]:
                return places, values, times
            keep, times = keep * _WIDER, times + 1
        return *self.ordered(query, length, np.arange(whole), count), times

    def ordered(
        self, query: NDArray[np.float32], length: float, places: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The best `count` of some places for one query, the best first, with their scores."""
        values = np.empty(len(places), np.float64)
        for slab in _slabs(len(places)):
            of_slab = places[slab]
            # A sum along a row does not depend on the other rows, as a product of matrices may.
            dots = (self.vectors[of_slab].astype(np.float64) * query.astype(np.float64)).sum(axis=1)
            values[slab] = np.round(dots / (self.lengths[of_slab] * length), DECIMALS) + 0.0  # no -0.0
        first = np.lexsort((places, -values))[:count]
        return places[first], values[first]


class Index:
    """An approximate index of a block's vectors: HNSW (Malkov & Yashunin 2018) by FAISS, the same on one thread
    whenever it is built of the same vectors in the same order. `breadth`: candidates looked at in a search."""

    def __init__(self, block: Block, links: int, breadth: int) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._block = block
        self._index = faiss.IndexHNSWFlat(block.vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction, self._index.hnsw.efSearch = _BUILD_BREADTH, breadth
        for slab in _slabs(len(block.vectors)):
            self._index.add(_unit(block.vectors[slab], block.lengths[slab]))

    def nearest(self, queries: NDArray[Any], count: int, rows: int) -> Found:
        """As `Block.nearest`, but that some of the best may be missing."""
        found = []
        for start in range(0, len(queries), rows):
            asked = np.ascontiguousarray(queries[start : start + rows], dtype=np.float32)
            lengths = lengths_of(asked)
            _, near = self._index.search(_unit(asked, lengths), min(count + MARGIN, len(self._block.vectors)))
            for row, places in enumerate(near):
                best = self._block.ordered(asked[row], lengths[row], np.sort(places[places >= 0]), count)
                found.append((start + row, *best))
        return _together(found, 0)


def lengths_of(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """The length of each vector; 1 for a vector of zeros, so that it can be divided by."""
    lengths: NDArray[np.float64] = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1))
    lengths[lengths == 0] = 1.0
    return lengths


def error_bound(dimensions: int) -> float:
    """How far a score in float32 may lie from the rounded cosine: rounding the query to unit length, a sum of products
    in any order (Higham 2002, section 3.1), the vector's length, and half a step of the rounding."""
    roundings = (dimensions + 3) * _UNIT
    return roundings / (1 - roundings) + _HALF_STEP + 1e-9


def _unit(vectors: NDArray[np.float32], lengths: NDArray[np.float64]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (vectors / lengths[:, None]).astype(np.float32)
    return unit


def _slabs(count: int) -> list[slice]:
    return [slice(start, min(start + _SLAB, count)) for start in range(0, count, _SLAB)]


def _together(found: list[tuple[int, NDArray[np.int64], NDArray[np.float64]]], widened: int) -> Found:
    if not found:
        nothing = np.empty(0, np.int64)
        return Found(nothing, nothing, np.empty(0, np.float64), widened)
    rows = [np.full(len(places), row, np.int64) for row, places, _ in found]
    return Found(
        np.concatenate(rows),
        np.concatenate([places for _, places, _ in found]),
        np.concatenate([values for _, _, values in found]),
        widened,
    )
