"""Who is a candidate, and who stays one."""

from collections.abc import Callable
from typing import Any

from ecomspark import metrics
from ecomspark.features.candidates import fused, judged_pairs, shown_pairs, together, with_margin
from ecomspark.schemas import CANDIDATES, INTERACTIONS, ITEMS, JUDGMENTS

Q = b"q" * 16


def test_an_item_leaves_only_from_below_the_margin(spark: Any, rows: Callable[..., Any]) -> None:
    best = spark.createDataFrame(
        [(Q, item, 9.0 - place, place) for place, item in enumerate("abcdef", start=1)],
        "query_id binary, item_id string, score double, place int",
    )
    published = rows(
        CANDIDATES,
        {"query_id": Q, "item_id": "d", "sources": {"bm25": 1.0}},
        {"query_id": Q, "item_id": "e", "sources": {"judged": 1.0}},
        {"query_id": Q, "item_id": "z", "sources": {"bm25": 1.0}},
        {"query_id": b"o" * 16, "item_id": "f", "sources": {"bm25": 1.0}},
    )
    kept = {row["item_id"] for row in with_margin(best, published, ["bm25"], count=3).collect()}
    assert kept == {"a", "b", "c", "d"}, "d was there and fell to place 4; e was another source's; f another query's"


def test_fused_places_are_those_of_the_plain_version_and_ties_are_broken_by_id(spark: Any) -> None:
    schema = "query_id binary, item_id string, score double"
    bm25 = [(Q, "b", 9.0), (Q, "a", 8.0), (Q, "d", 7.0), (Q, "c", 7.0), (b"o" * 16, "z", 1.0)]
    embedding = [(Q, "a", 0.9), (Q, "b", 0.8), (Q, "e", 0.1)]
    proposals = {"bm25": spark.createDataFrame(bm25, schema), "embedding": spark.createDataFrame(embedding, schema)}
    rows = fused(proposals, 60).collect()
    found = {row["item_id"]: (row["place"], row["score"]) for row in rows if bytes(row["query_id"]) == Q}
    ranks: list[dict[str, int]] = [{"b": 1, "a": 2, "c": 3, "d": 4}, {"a": 1, "b": 2, "e": 3}]
    plain = metrics.reciprocal_rank_fusion(ranks, 60)
    assert found == {item: (place, score) for place, (item, score) in enumerate(plain.items(), start=1)}
    assert [(row["item_id"], row["place"]) for row in rows if bytes(row["query_id"]) != Q] == [("z", 1)]


def test_each_pair_keeps_who_proposed_it_and_only_items_of_the_shop_stay(spark: Any, rows: Callable[..., Any]) -> None:
    schema = "query_id binary, item_id string, score double"
    proposals = {
        "bm25": spark.createDataFrame([(Q, "a", 2.5), (Q, "b", 1.5)], schema),
        "judged": spark.createDataFrame([(Q, "b", 1.0), (Q, "gone", 1.0)], schema),
    }
    items = rows(ITEMS, {"item_id": "a"}, {"item_id": "b"})
    found = {row["item_id"]: row["sources"] for row in together(proposals, items).collect()}
    assert found == {"a": {"bm25": 2.5}, "b": {"bm25": 1.5, "judged": 1.0}}


def test_judged_pairs_carry_no_grade(rows: Callable[..., Any]) -> None:
    judgments = rows(
        JUDGMENTS,
        {"judgment_set": "a", "query_id": Q, "item_id": "x", "grade": 3.0},
        {"judgment_set": "b", "query_id": Q, "item_id": "x", "grade": 0.0},
        {"judgment_set": "b", "query_id": Q, "item_id": "y", "grade": 0.0},
    )
    assert {(r["item_id"], r["score"]) for r in judged_pairs(judgments, None).collect()} == {("x", 1.0), ("y", 1.0)}
    assert judged_pairs(judgments, ["a"]).count() == 1


def test_shown_pairs_are_the_impressions_of_known_queries(spark: Any, rows: Callable[..., Any]) -> None:
    def shown(name: str, **of: Any) -> dict[str, Any]:
        return {
            "interaction_id": name,
            "kind": "impression",
            "source": "log",
            "source_query_id": "1",
            "item_id": "x",
            **of,
        }

    interactions = rows(
        INTERACTIONS,
        shown("1"),
        shown("2"),
        shown("3", kind="click"),
        shown("4", source_query_id="9"),
        shown("5", source=None),
    )
    known = spark.createDataFrame([("log", "1", Q)], "source string, source_query_id string, query_id binary")
    assert [(r["item_id"], r["score"]) for r in shown_pairs(interactions, known).collect()] == [("x", 2.0)]
