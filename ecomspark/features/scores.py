"""What scores a pair has, and which pairs still need one."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

PAIR = ["query_digest", "passage_digest"]


def pair_texts(
    candidates: DataFrame, queries: DataFrame, items: DataFrame, texts: DataFrame, recipe_digest: bytes
) -> DataFrame:
    """Candidates with the digests and texts that a model would read; null where `texts` lacks one.

    (query_id, item_id, query_digest, query_text, passage_digest, passage_text). Candidates whose query or item is
    gone are left out.
    """
    made = texts.where(F.col("recipe_digest") == F.lit(recipe_digest))
    of_query = made.where("role = 'query'").select(
        F.col("source_digest").alias("text_source_digest"),
        F.col("text_digest").alias("query_digest"),
        F.col("text").alias("query_text"),
    )
    of_item = made.where("role = 'passage'").select(
        "source_digest", F.col("text_digest").alias("passage_digest"), F.col("text").alias("passage_text")
    )
    return (
        candidates.select("query_id", "item_id")
        .join(queries.select("query_id", "text_source_digest"), on="query_id", how="inner")
        .join(items.select("item_id", "source_digest"), on="item_id", how="inner")
        .join(of_query, on="text_source_digest", how="left")
        .join(of_item, on="source_digest", how="left")
        .select("query_id", "item_id", "query_digest", "query_text", "passage_digest", "passage_text")
    )


def standing(scores: DataFrame, scorer_digest: bytes) -> DataFrame:
    """One row a pair of what a scorer's attempts came to: (query_digest, passage_digest, logit, error_kind, attempt).

    The logit of the first attempt that has one, else the last error's kind and attempt.
    """
    of_scorer = scores.where(F.col("scorer_digest") == F.lit(scorer_digest))
    best_first = Window.partitionBy(*PAIR).orderBy(
        F.col("logit").isNull(), F.when(F.col("logit").isNull(), -F.col("attempt")).otherwise(F.col("attempt"))
    )
    placed = of_scorer.withColumn("_place", F.row_number().over(best_first)).where("_place = 1")
    return placed.select(*PAIR, "logit", "error_kind", "attempt")


def lacking(pairs: DataFrame, standing: DataFrame, max_tries: int) -> DataFrame:
    """The distinct pairs that need a score, with the number of the try: those without a logit whose last error is
    passing and whose tries are below the bound, and those never tried."""
    distinct = pairs.select(*PAIR, "query_text", "passage_text").dropDuplicates(PAIR)  # one digest, one text
    tried = distinct.join(standing, on=PAIR, how="left")
    may_heal = (F.col("error_kind") == "passing") & (F.col("attempt") < max_tries)
    needs = F.col("attempt").isNull() | (F.col("logit").isNull() & may_heal)
    attempt = F.coalesce(F.col("attempt"), F.lit(0)) + 1
    return tried.where(needs).select(*PAIR, "query_text", "passage_text", attempt.cast("int").alias("attempt"))
