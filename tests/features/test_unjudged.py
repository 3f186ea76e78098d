"""Candidates that nobody judged, of training queries, best first."""

from collections.abc import Callable
from typing import Any

from ecomspark.features.unjudged import unjudged_candidates
from ecomspark.schemas import CANDIDATES, JUDGMENTS

Q, OTHER = b"q" * 16, b"o" * 16


def test_the_best_unjudged_of_training_queries_keep_the_places_that_they_have_among_all(
    spark: Any, rows: Callable[..., Any]
) -> None:
    candidates = rows(
        CANDIDATES,
        {"query_id": Q, "item_id": "a", "sources": {"bm25": 9.0, "judged": 1.0}},
        {"query_id": Q, "item_id": "b", "sources": {"bm25": 8.0}},
        {"query_id": Q, "item_id": "c", "sources": {"bm25": 7.0, "impressions": 99.0}},
        {"query_id": Q, "item_id": "d", "sources": {"bm25": 7.0}},
        {"query_id": Q, "item_id": "e", "sources": {"bm25": 6.0}},
        {"query_id": Q, "item_id": "f", "sources": {"judged": 1.0, "impressions": 500.0}},
        {"query_id": OTHER, "item_id": "b", "sources": {"bm25": 5.0}},
    )
    judged = rows(
        JUDGMENTS,
        {"judgment_set": "ours", "query_id": Q, "item_id": "a", "grade": 3.0},
        {"judgment_set": "another", "query_id": Q, "item_id": "e", "grade": 0.0},
        {"judgment_set": "ours", "query_id": OTHER, "item_id": "d", "grade": 0.0},
    )
    train = spark.createDataFrame([(Q,), (Q,)], "query_id binary")

    def found(cap: int, *sources: str) -> list[tuple[Any, ...]]:
        made = unjudged_candidates(candidates, judged, train, cap, *([sources] if sources else []))
        assert made.columns == ["query_id", "item_id", "source", "score", "place"]
        assert {bytes(row["query_id"]) for row in made.collect()} == {Q}
        return sorted((row["place"], row["item_id"], row["source"], row["score"]) for row in made.collect())

    assert found(9) == [(2, "b", "bm25", 8.0), (3, "c", "bm25", 7.0), (4, "d", "bm25", 7.0)]
    assert found(2) == found(9)[:2]
    # By impressions f is first and c second; by BM25 a is first, b second, and it is named first: ties are its.
    by_both = [
        (2, "f", "impressions", 500.0),
        (3, "b", "bm25", 8.0),
        (4, "c", "impressions", 99.0),
        (5, "d", "bm25", 7.0),
    ]
    assert found(9, "bm25", "impressions") == by_both
