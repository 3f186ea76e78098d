"""Candidates: who proposes what, how proposals are fused, and who stays although a little worse than before."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

Proposer = Literal["bm25", "embedding", "judged", "impressions"]

BM25: Proposer = "bm25"
EMBEDDING: Proposer = "embedding"

JUDGED: Proposer = "judged"
IMPRESSIONS: Proposer = "impressions"


def with_margin(best: DataFrame, published: DataFrame, sources: Sequence[str], count: int) -> DataFrame:
    """The first `count` items of each query, and of those behind them the ones that a source proposed already.

    `best`: query_id, item_id, score, place, with as many places as the margin allows. An item leaves only from below
    the margin, so that a score that wavers around the last place moves nobody.
    """
    is_theirs = F.arrays_overlap(F.map_keys("sources"), F.array(*map(F.lit, sources)))
    stayed = published.where(is_theirs).select("query_id", "item_id")
    behind = best.where(F.col("place") > count).join(stayed, on=["query_id", "item_id"], how="left_semi")
    return best.where(F.col("place") <= count).unionByName(behind).select("query_id", "item_id", "score")


def fused(proposals: Mapping[str, DataFrame], constant: int) -> DataFrame:
    """(query_id, item_id, score, place): what several sources propose as one order, place 1 first, by the sum of
    1 / (constant + rank) over them (Cormack, Clarke & Büttcher 2009); ties by item_id.

    `proposals`: query_id, item_id, score by source; its ranks fall with the score, ties by item_id.
    `metrics.reciprocal_rank_fusion` is the same in plain Python.
    """
    best_first = Window.partitionBy("query_id").orderBy(F.desc("score"), "item_id")
    share = F.lit(1.0) / (F.lit(constant) + F.row_number().over(best_first))
    ranked = (rows.select("query_id", "item_id", share.alias("share")) for rows in proposals.values())
    united = reduce(DataFrame.unionByName, ranked)
    # In the order of their size, and rounded: no order of adding breaks a tie.
    added = F.aggregate(F.array_sort(F.collect_list("share")), F.lit(0.0), lambda total, one: total + one)
    scores = united.groupBy("query_id", "item_id").agg(F.round(added, 12).alias("score"))
    return scores.withColumn("place", F.row_number().over(best_first))


def judged_pairs(judgments: DataFrame, judgment_sets: list[str] | None) -> DataFrame:
    """The pairs that an assessor graded, whatever the grade: (query_id, item_id, score 1)."""
    of_sets = judgments if judgment_sets is None else judgments.where(F.col("judgment_set").isin(judgment_sets))
    return of_sets.select("query_id", "item_id", F.lit(1.0).alias("score")).distinct()


def shown_pairs(interactions: DataFrame, queries_by_alias: DataFrame) -> DataFrame:
    """The items that were shown for a query, and how often: (query_id, item_id, score)."""
    shown = interactions.where("kind = 'impression'")
    known = shown.join(queries_by_alias, on=["source", "source_query_id"], how="inner")
    return known.groupBy("query_id", "item_id").agg(F.count("*").cast("double").alias("score"))


def together(proposals: Mapping[str, DataFrame], items: DataFrame) -> DataFrame:
    """Rows for `candidates`: each pair once with the score of every source that proposes it; items of the shop only."""
    pair = ("query_id", "item_id", "score")
    named = (rows.select(*pair, F.lit(name).alias("source")) for name, rows in proposals.items())
    united = reduce(DataFrame.unionByName, named)
    sources = F.map_from_entries(F.sort_array(F.collect_list(F.struct("source", "score"))))
    offered = united.join(items.select("item_id"), on="item_id", how="left_semi")
    return offered.groupBy("query_id", "item_id").agg(sources.alias("sources"))
