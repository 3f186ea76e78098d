"""Ranking terms: each formula by hand, the model's bands above all other terms, ties by item_id."""

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from pyspark.sql import functions as F

from ecomspark import metrics
from ecomspark.features.ranking import Policy, Weights, expected_gain, incomplete, of_policy, ranked, scored_shares

AS_OF = date(2011, 11, 1)
POINTS = [(-2.0, 0.05), (0.0, 0.3), (2.0, 0.9)]
SCHEMA = (
    "query_id binary, item_id string, query_digest binary, passage_digest binary, logit double, error_kind string, "
    "sources map<string,double>, price decimal(18,4), currency string, category string, sold_count bigint, rating double, "
    "rating_count bigint, is_in_stock boolean, listed_at timestamp"
)


def candidates(spark: Any, *rows: dict[str, Any]) -> Any:
    filled = []
    for n, row in enumerate(rows):
        whole = {"query_id": b"q", "item_id": f"i{n}", "query_digest": b"t", "passage_digest": b"p", "logit": 1.0,
                 "sources": {"bm25": 1.0}, "currency": "GBP", **row}  # fmt: skip
        if whole.get("price") is not None:
            whole["price"] = Decimal(str(whole["price"]))
        filled.append(tuple(whole.get(part.split()[0]) for part in SCHEMA.split(", ")))
    return spark.createDataFrame(filled, SCHEMA)


def rank(spark: Any, policy: Policy, *rows: dict[str, Any]) -> dict[str, Any]:
    frame = ranked(candidates(spark, *rows), "main", policy, POINTS, AS_OF)
    return {row["item_id"]: row for row in frame.collect()}


def alone(**weight: float) -> Policy:
    """A policy in which one term decides everything, without bands."""
    none = dict.fromkeys(Weights.model_fields, 0.0)
    return Policy(weights=Weights(**{**none, **weight}), bands=[])


def test_calibration_in_spark_equals_the_plain_one(spark: Any) -> None:
    logits = [*np.linspace(-9, 9, 181).tolist(), -2.0, 0.0, 2.0]
    frame = spark.createDataFrame([(x,) for x in logits], "x double").select(
        "x", expected_gain(F.col("x"), POINTS).alias("y")
    )
    for row in frame.collect():
        assert row["y"] == pytest.approx(metrics.expected_gain(row["x"], POINTS), abs=1e-12)


def test_cheaper_is_better_among_comparable_candidates_only(spark: Any) -> None:
    found = rank(
        spark, alone(price=1),
        {"price": 1}, {"price": 2}, {"price": 3}, {"price": 3}, {"price": None},
        {"price": 100, "category": "other"}, {"price": 50, "currency": "EUR"}, {"query_id": b"other", "price": 9},
    )  # fmt: skip
    # percent rank of 1, 2, 3, 3 is 0, 1/3, 2/3, 2/3
    assert [found[f"i{n}"]["price_term"] for n in range(8)] == pytest.approx(
        [1, 2 / 3, 1 / 3, 1 / 3, 0.5, 0.5, 0.5, 0.5], abs=1e-6
    )


def test_sold_rating_and_freshness_by_hand(spark: Any) -> None:
    def listed(*day: int) -> datetime:
        return datetime(*day, 12, tzinfo=UTC)  # type: ignore[misc]

    policy = Policy(weights=Weights(relevance=0, price=0, sold=1, rating=1, freshness=2), bands=[], sold_cap=100)
    found = rank(
        spark, policy,
        {"sold_count": 0, "rating": 5.0, "rating_count": 10, "listed_at": listed(2011, 10, 20)},
        {"sold_count": 9, "rating": 5.0, "rating_count": None, "listed_at": listed(2011, 8, 15)},
        {"sold_count": 5_000, "rating": None, "listed_at": listed(2011, 1, 1)},
        {"sold_count": None, "rating": 1.0, "rating_count": 0, "listed_at": listed(2011, 12, 24)},
    )  # fmt: skip
    rows = [found[f"i{n}"] for n in range(4)]
    assert [row["sold_term"] * 4 for row in rows] == pytest.approx([0, math.log(10) / math.log(101), 1, 0], abs=1e-5)
    # (5 x 10 + 3.5 x 10) / 20 = 4.25; a rating without a count counts as one; none, or none counted: the prior
    shrunk = [4.25, (5 + 35) / 11, 3.5, 3.5]
    assert [row["rating_term"] * 4 for row in rows] == pytest.approx([(mean - 1) / 4 for mean in shrunk], abs=1e-5)
    assert [row["freshness_term"] * 2 for row in rows] == pytest.approx([1.0, 0.5, 0.0, 0.0]), (
        "12 days, 78, old, not yet"
    )


def test_no_other_term_lifts_an_item_over_a_band(spark: Any) -> None:
    policy = Policy(weights=Weights(relevance=0.01, price=0.5, sold=0.49, rating=0, freshness=0), bands=[0.5])
    found = rank(
        spark, policy,
        {"logit": 0.4, "price": 1, "sold_count": 10_000},   # 0.42: below the band
        {"logit": 0.8, "price": 9, "sold_count": 0},        # 0.54: within it
        {"logit": 1.9, "price": 5, "sold_count": 0},
    )  # fmt: skip
    assert [found[f"i{n}"]["band"] for n in range(3)] == [0, 1, 1]
    assert [found[f"i{n}"]["rank"] for n in range(3)] == [3, 2, 1]
    by_rank = sorted(found.values(), key=lambda row: row["rank"])
    finals = [row["final_score"] for row in by_rank]
    assert finals == sorted(finals, reverse=True)
    for row in found.values():
        terms = sum(row[f"{name}_term"] for name in Weights.model_fields)
        assert row["final_score"] == pytest.approx(row["availability"] + row["band"] + terms, abs=2e-6)
        assert 0 <= terms <= 1 + 1e-6


def test_what_cannot_be_bought_is_last_or_left_out(spark: Any) -> None:
    rows = (
        {"logit": 9.0, "is_in_stock": False},
        {"logit": -9.0, "is_in_stock": True},
        {"logit": -9.5, "is_in_stock": None},
    )
    last = rank(spark, Policy(), *rows)
    assert [last[f"i{n}"]["rank"] for n in range(3)] == [3, 1, 2]
    assert last["i0"]["final_score"] < 0 < last["i1"]["final_score"]
    out = rank(spark, Policy(unavailable="out"), *rows)
    assert set(out) == {"i1", "i2"}


def test_equal_scores_are_ordered_by_item_id_and_ranks_have_no_gap(spark: Any) -> None:
    found = rank(
        spark,
        Policy(),
        *({"item_id": name, "logit": 1.00001} for name in ("b", "a", "B", "c")),
        {"item_id": "d", "logit": 1.00004},
    )
    assert [name for name, _ in sorted(found.items(), key=lambda pair: pair[1]["rank"])] == ["B", "a", "b", "c", "d"]
    assert sorted(row["rank"] for row in found.values()) == [1, 2, 3, 4, 5]


def test_one_price_moves_rows_of_its_own_query_only(spark: Any) -> None:
    shop = [{"query_id": q, "item_id": f"{n}", "price": n, "sold_count": n} for q in (b"1", b"2") for n in range(1, 6)]
    before = ranked(candidates(spark, *shop), "main", Policy(), POINTS, AS_OF)
    shop[2] = {**shop[2], "price": 99}
    after = ranked(candidates(spark, *shop), "main", Policy(), POINTS, AS_OF)
    moved = {bytes(row["query_id"]) for row in after.exceptAll(before).collect()}
    assert moved == {b"1"}


def test_what_only_an_assessor_proposed_is_ranked_under_no_other_variant(spark: Any) -> None:
    frame = candidates(
        spark,
        {"sources": {"judged": 1.0}},
        {"sources": {"judged": 1.0, "bm25": 2.0}},
        {"sources": {"impressions": 1.0}},
    )
    assert {row["item_id"] for row in of_policy(frame, Policy()).collect()} == {"i1", "i2"}
    assert {row["item_id"] for row in of_policy(frame, Policy(proposed_by=["judged"])).collect()} == {"i0", "i1"}


def test_a_query_is_kept_back_while_too_few_of_its_candidates_are_scored(spark: Any) -> None:
    frame = candidates(
        spark,
        {"query_id": b"whole"}, {"query_id": b"whole"},
        {"query_id": b"lasting"}, {"query_id": b"lasting", "logit": None, "error_kind": "lasting"},
        {"query_id": b"passing"}, {"query_id": b"passing", "logit": None, "error_kind": "passing"},
        {"query_id": b"new"}, {"query_id": b"new"}, {"query_id": b"new", "logit": None},
    )  # fmt: skip
    assert {bytes(r["query_id"]) for r in incomplete(scored_shares(frame), 1.0).where("is_kept_back").collect()} == {
        b"passing",
        b"new",
    }
    assert {bytes(r["query_id"]) for r in incomplete(scored_shares(frame), 0.6).where("is_kept_back").collect()} == {
        b"passing"
    }
    assert incomplete(scored_shares(frame), 0.0).where("is_kept_back").isEmpty()


def test_candidates_without_a_logit_are_not_ranked(spark: Any) -> None:
    assert set(rank(spark, Policy(), {"logit": None}, {"logit": 0.0})) == {"i1"}
