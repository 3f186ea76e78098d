"""Candidates that nobody judged: what hard negatives are taken from."""

from collections.abc import Sequence

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F


def unjudged_candidates(
    candidates: DataFrame,
    judged: DataFrame,
    train_queries: DataFrame,
    per_query_cap: int,
    sources: Sequence[str] = ("bm25",),
) -> DataFrame:
    """The best candidates of training queries without those judged: (query_id, item_id, source, score, place).

    `candidates`: rows of `candidates`; `judged`: query_id, item_id of every judgment set, also of those that are not
    trained on; `train_queries`: query_id. Scores of two sources do not compare, their orders do: a candidate stands
    where the source that places it best has it, ties by the order of `sources`. `place` counts those judged, too, so
    a query's first places stay its first; then `per_query_cap` of the rest are kept. What shoppers were shown
    (impressions) proposes by default nothing: what they clicked there is the likeliest to be relevant.
    """
    order = F.array(*map(F.lit, sources))
    by_score = Window.partitionBy("query_id", "source").orderBy(F.desc("score"), "item_id")
    best_first = Window.partitionBy("query_id").orderBy("in_source", "source_place", "item_id")
    proposed = (
        candidates.join(train_queries.select("query_id").distinct(), on="query_id", how="left_semi")
        .select("query_id", "item_id", F.explode("sources").alias("source", "score"))
        .where(F.col("source").isin(*sources))
        .withColumn("in_source", F.row_number().over(by_score))
        .withColumn("source_place", F.array_position(order, F.col("source")))
    )
    once = proposed.groupBy("query_id", "item_id").agg(
        F.min(F.struct("in_source", "source_place", "source", "score")).alias("best")
    )
    placed = once.select("query_id", "item_id", "best.*").withColumn("place", F.row_number().over(best_first))
    unjudged = placed.join(judged.select("query_id", "item_id").distinct(), on=["query_id", "item_id"], how="left_anti")
    by_place = Window.partitionBy("query_id").orderBy("place")
    kept = unjudged.withColumn("kept", F.row_number().over(by_place)).where(F.col("kept") <= per_query_cap)
    return kept.select("query_id", "item_id", "source", "score", "place")
