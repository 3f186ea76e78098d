"""Candidates: who proposes what, and who stays although a little worse than before."""

from collections.abc import Mapping
from functools import reduce
from typing import Literal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

Proposer = Literal["bm25", "judged", "impressions"]

JUDGED: Proposer = "judged"
IMPRESSIONS: Proposer = "impressions"


def with_margin(best: DataFrame, published: DataFrame, source: str, count: int) -> DataFrame:
    """The first `count` items of each query, and of those behind them the ones that the source proposed already.

    `best`: query_id, item_id, score, place, with as many places as the margin allows. An item leaves only from below
    the margin, so that a score that wavers around the last place moves nobody.
    """
    stayed = published.where(F.map_contains_key("sources", source)).select("query_id", "item_id")
    behind = best.where(F.col("place") > count).join(stayed, on=["query_id", "item_id"], how="left_semi")
    return best.where(F.col("place") <= count).unionByName(behind).select("query_id", "item_id", "score")


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
