"""Which queries nothing serves well."""

from collections.abc import Callable
from typing import Any

from ecomspark.features.unserved import unserved
from ecomspark.schemas import JUDGMENTS, QUERIES

Q = {name: name.encode() * 16 for name in "abcdef"}


def test_a_query_is_unserved_with_few_words_and_nothing_near_or_where_judges_know_better(
    spark: Any, rows: Callable[..., Any]
) -> None:
    schema = "query_id binary, item_id string, score double"
    queries = rows(QUERIES, *({"query_id": q, "traffic": 7} for q in Q.values()))
    # a: one match and a near item; b: one match, none near; c: two matches, none near; d: nothing at all;
    # e: one of three relevant items is found; f: as b, and of its relevant items none is found
    matched = [(Q["a"], "x"), (Q["b"], "x"), (Q["c"], "x"), (Q["c"], "y"), (Q["e"], "x"), (Q["e"], "y"), (Q["f"], "x")]
    by_bm25 = spark.createDataFrame([(*pair, 1.0) for pair in matched], schema)
    near = [("a", 0.5), ("a", 0.2), ("b", 0.49), ("c", 0.1), ("e", 0.9), ("f", 0.3)]
    by_embedding = spark.createDataFrame([(Q[q], f"n{score}", score) for q, score in near], schema)
    wanted = [("e", "x"), ("e", "gone"), ("e", "z"), ("f", "z"), ("a", "x")]
    relevant = rows(JUDGMENTS, *({"query_id": Q[q], "item_id": item} for q, item in wanted))

    found = unserved(queries, by_bm25, by_embedding, relevant, 2, 0.5, 0.5).collect()
    by_query = {bytes(row["query_id"])[:1].decode(): row for row in found}
    assert {q: row["reason"] for q, row in by_query.items()} == {
        "b": "nothing_near", "d": "nothing_near", "e": "low_recall", "f": "low_recall",
    }  # fmt: skip
    assert by_query["e"]["recall"] == 0.333333
    assert by_query["b"]["recall"] is None
    assert (by_query["d"]["lexical_count"], by_query["d"]["best_cosine"], by_query["d"]["traffic"]) == (0, None, 7)

    alone = unserved(queries, by_bm25, None, relevant, 2, 0.5, 0.5).collect()
    lacking = {bytes(row["query_id"])[:1].decode() for row in alone if row["reason"] == "nothing_near"}
    assert lacking == {"a", "b", "d"}, "without embeddings nothing is near"
