"""The nearest vectors, exactly: against plain float64, whatever the blocks, with twins and near-ties at the edge."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecomspark import nearest
from ecomspark.errors import ConfigError
from ecomspark.nearest import Block, Found, Index, Room

Vectors = NDArray[np.float32]


def reference(queries: Vectors, vectors: Vectors, count: int) -> list[list[tuple[int, float]]]:
    """Every cosine in float64, rounded, then ordered: the best of each query with their places."""
    q, v = queries.astype(float), vectors.astype(float)
    norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(v, axis=1)[None, :]
    cosines = np.round(np.divide(q @ v.T, norms, out=np.zeros_like(norms), where=norms > 0), 6)
    orders = np.lexsort((np.broadcast_to(np.arange(len(v)), cosines.shape), -cosines), axis=1)[:, :count]
    return [[(int(p), float(row[p])) for p in order] for row, order in zip(cosines, orders, strict=True)]


def listed(found: Found, queries: int) -> list[list[tuple[int, float]]]:
    lists: list[list[tuple[int, float]]] = [[] for _ in range(queries)]
    for row, place, score in zip(found.queries, found.places, found.scores, strict=True):
        lists[row].append((int(place), float(score)))
    return lists


def drawn(seed: int, count: int, dimensions: int = 24) -> Vectors:
    made = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (made / np.linalg.norm(made, axis=1)[:, None]).astype(np.float32)


def crowded(seed: int = 3) -> tuple[Vectors, Vectors]:
    """Queries and vectors of which, for the first query, 60 are twins of one another and 200 lie within the error of
    float32 of the 20th place."""
    generator = np.random.default_rng(seed)
    vectors, queries = drawn(seed, 900), drawn(seed + 1, 7)
    order = np.argsort(-(vectors @ queries[0]))
    vectors[order[5:65]] = vectors[order[5]]
    edge = vectors[order[5]].astype(float)
    near = edge + generator.normal(size=(200, 24)) * 1e-6
    vectors[order[100:300]] = near.astype(np.float32)
    return queries, vectors


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("count", [1, 20, 64, 900, 2_000])
def test_it_is_what_float64_says_of_all_with_twins_and_near_ties_at_the_edge(count: int, rows: int) -> None:
    queries, vectors = crowded()
    found = Block.of(vectors).nearest(queries, count, rows)
    assert listed(found, len(queries)) == reference(queries, vectors, count)


def test_a_query_whose_edge_is_not_proven_is_done_again_and_no_other() -> None:
    queries, vectors = crowded()
    assert Block.of(vectors).nearest(queries, 20, 10).widened > 0
    assert Block.of(drawn(3, 900)).nearest(queries, 20, 10).widened == 0, "all edges are clear"
    assert Block.of(np.tile(vectors[:1], (500, 1))).nearest(queries[:1], 20, 10).widened == 2, "32 + 20, 208, all"


@given(st.integers(1, 899), st.integers(0, 3))
@example_settings(max_examples=20)
def test_parts_that_are_merged_say_what_the_whole_says(cut: int, seed: int) -> None:
    queries, vectors = crowded(seed)
    merged: list[list[tuple[int, float]]] = [[] for _ in queries]
    for start, part in ((0, vectors[:cut]), (cut, vectors[cut:])):
        for row, best in enumerate(listed(Block.of(part).nearest(queries, 30, 4), len(queries))):
            merged[row] += [(place + start, score) for place, score in best]
    best_first = [sorted(of, key=lambda entry: (-entry[1], entry[0]))[:30] for of in merged]
    assert best_first == listed(Block.of(vectors).nearest(queries, 30, 100), len(queries))


def test_a_pairs_score_is_the_same_to_the_bit_whoever_stands_beside_it() -> None:
    vectors, query = drawn(1, 300, 384), drawn(2, 1, 384)
    whole = Block.of(vectors).nearest(query, 300, 1)
    for place, score in zip(whole.places[:40], whole.scores[:40], strict=True):
        assert Block.of(vectors[[place]]).nearest(query, 1, 1).scores[0] == score


def test_whole_numbers_are_compared_by_direction_and_zeros_are_at_a_right_angle() -> None:
    vectors = np.array([[3, 4], [0, 0], [127, 0], [-4, -3]], np.float32)
    found = Block.of(vectors).nearest(np.array([[30, 40], [0, 0]], np.float32), 4, 1)
    assert listed(found, 2) == [[(0, 1.0), (2, 0.6), (1, 0.0), (3, -0.96)], [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0)]]


def test_nothing_is_nearest_to_no_query_and_in_no_vectors() -> None:
    assert len(Block.of(drawn(1, 5)).nearest(drawn(2, 0), 3, 1).places) == 0
    assert len(Block.of(drawn(1, 0)).nearest(drawn(2, 3), 3, 1).places) == 0


@given(st.integers(0, 50), st.sampled_from([8, 64, 384]))
def test_the_error_of_float32_stays_within_its_bound(seed: int, dimensions: int) -> None:
    queries, vectors = drawn(seed, 4, dimensions), drawn(seed + 100, 50, dimensions)
    lengths = nearest.lengths_of(vectors)
    single = (queries @ vectors.T) * (1 / lengths).astype(np.float32)
    double = np.array([[score for _, score in sorted(of)] for of in reference(queries, vectors, 50)])
    assert np.abs(single - double).max() < nearest.error_bound(dimensions)


@pytest.mark.parametrize(("mib", "dimensions"), [(1, 32), (4, 384), (16, 384)])
def test_a_task_keeps_to_the_memory_that_is_stated(mib: int, dimensions: int) -> None:
    room = Room.of(mib, dimensions)
    assert room.bytes <= mib * 2**20
    vectors, queries = drawn(1, room.vectors, dimensions), drawn(2, room.rows, dimensions)
    tracemalloc.start()
    block = Block(len(vectors), dimensions)
    block.put(vectors)
    found = block.nearest(queries, 10, room.rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.places) == 10 * room.rows
    results = 3 * 8 * len(found.places) + 1_000 * room.rows  # an array has a head
    assert peak <= room.bytes + results


def test_memory_for_not_one_vector_is_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"block_mib: expected room for vectors of 100,000,000 numbers, found 1 MiB"):
        Room.of(1, 100_000_000)
    with pytest.raises(ConfigError, match="index_mib"):
        nearest.indexed_vectors(1, 100_000_000, 32)


def test_an_index_finds_nearly_all_scores_what_it_finds_exactly_and_is_the_same_again() -> None:
    centres = drawn(5, 40, 48)
    generator = np.random.default_rng(6)
    made = centres[generator.integers(0, 40, 3_000)] + generator.normal(size=(3_000, 48)) * 0.1
    block, queries = Block.of(made.astype(np.float32)), drawn(7, 50, 48)
    exact = listed(block.nearest(queries, 20, 50), 50)
    found = [listed(Index(block, links=16, breadth=200).nearest(queries, 20, 7), 50) for _ in range(2)]
    assert found[0] == found[1]
    scores: dict[tuple[int, int], Any] = {(q, p): s for q, of in enumerate(exact) for p, s in of}
    hits = [(q, p) for q, of in enumerate(found[0]) for p, s in of if scores.get((q, p)) == s]
    assert len(hits) / len(scores) > 0.95
    assert all(of == sorted(of, key=lambda entry: (-entry[1], entry[0])) for of in found[0])
