"""The queries that no source of candidates serves well."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

NOTHING_NEAR = "nothing_near"
LOW_RECALL = "low_recall"


def unserved(
    queries: DataFrame,
    by_bm25: DataFrame,
    by_embedding: DataFrame | None,
    relevant: DataFrame,
    few_matches: int,
    near_cosine: float,
    min_recall: float,
) -> DataFrame:
    """Rows for `unserved_queries`: the queries with fewer than `few_matches` items by BM25 and none of at least
    `near_cosine` by embedding (nothing_near), and those of whose relevant items less than `min_recall` is among what
    both found (low_recall, which is named where both hold).

    `by_bm25`, `by_embedding`: query_id, item_id, score; the second None where nothing is embedded: then nothing is
    near. `relevant`: query_id, item_id of judged items, those that left the shop, too: nobody finds them.
    """
    matches = by_bm25.groupBy("query_id").agg(F.count("*").cast("int").alias("lexical_count"))
    found = by_bm25.select("query_id", "item_id")
    marked = queries.select("query_id", "traffic").join(matches, on="query_id", how="left")
    if by_embedding is None:
        marked = marked.withColumn("best_cosine", F.lit(None).cast("double"))
    else:
        nearest = by_embedding.groupBy("query_id").agg(F.max("score").alias("best_cosine"))
        marked = marked.join(nearest, on="query_id", how="left")
        found = found.unionByName(by_embedding.select("query_id", "item_id")).distinct()
    wanted = relevant.select("query_id", "item_id").distinct()
    of_wanted = wanted.join(found.withColumn("_found", F.lit(1.0)), on=["query_id", "item_id"], how="left")
    recall = of_wanted.groupBy("query_id").agg(F.round(F.count("_found") / F.count("*"), 6).alias("recall"))
    is_lost = (F.coalesce("lexical_count", F.lit(0)) < few_matches) & F.coalesce(
        F.col("best_cosine") < near_cosine, F.lit(True)
    )
    reason = F.when(F.col("recall") < min_recall, LOW_RECALL).when(is_lost, NOTHING_NEAR)
    return (
        marked.join(recall, on="query_id", how="left")
        .withColumn("reason", reason)
        .where(F.col("reason").isNotNull())
        .select(
            "query_id", "traffic", "reason", F.coalesce("lexical_count", F.lit(0)).alias("lexical_count"),
            "best_cosine", "recall",
        )
    )  # fmt: skip
