"""What scores a pair has, and which pairs still need one."""

from collections.abc import Sequence

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

PAIR = ["query_digest", "passage_digest"]
SOURCES = ["text_source_digest", "source_digest"]


def pair_texts(
    candidates: DataFrame, queries: DataFrame, items: DataFrame, texts: DataFrame, recipe_digest: bytes
) -> DataFrame:
    """Candidates with the digests and texts that a model would read; null where `texts` lacks one.

    (the columns given, text_source_digest, source_digest, query_digest, query_text, passage_digest, passage_text).
    Candidates whose query or item is gone are left out.
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
        candidates.join(queries.select("query_id", "text_source_digest"), on="query_id", how="inner")
        .join(items.select("item_id", "source_digest"), on="item_id", how="inner")
        .join(of_query, on="text_source_digest", how="left")
        .join(of_item, on="source_digest", how="left")
        .select(*candidates.columns, *SOURCES, "query_digest", "query_text", "passage_digest", "passage_text")
    )


def sources_of(candidates: DataFrame, queries: DataFrame, items: DataFrame) -> DataFrame:
    """(source_digest) of the queries and items of some candidates, each once: what `texts` has them under."""
    asked = queries.join(candidates.select("query_id").distinct(), on="query_id", how="left_semi")
    offered = items.join(candidates.select("item_id").distinct(), on="item_id", how="left_semi")
    of_queries = asked.select(F.col("text_source_digest").alias("source_digest"))
    return of_queries.unionByName(offered.select("source_digest")).distinct()


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
    """The pairs given that need a score, with `attempt`, the number of the try: those without a logit whose last error
    is passing and whose tries are below the bound, and those never tried."""
    tried = pairs.join(standing, on=PAIR, how="left")
    may_heal = (F.col("error_kind") == "passing") & (F.col("attempt") < max_tries)
    needs = F.col("attempt").isNull() | (F.col("logit").isNull() & may_heal)
    attempt = (F.coalesce(F.col("attempt"), F.lit(0)) + 1).cast("int")
    return tried.where(needs).select(*pairs.columns, attempt.alias("attempt"))


def distinct_pairs(needed: DataFrame, order: Sequence[str]) -> DataFrame:
    """Each pair of texts once: (query_digest, passage_digest, text_source_digest, source_digest, cause, attempt, and
    `candidates`, how many it is of).

    Of the causes of its candidates it has the one that comes first in `order`. Sources of one text differ at most in
    what the recipe leaves out: any will do, and the least is taken.
    """
    place = F.array_position(F.array(*map(F.lit, order)), F.col("cause"))
    best = F.min(F.struct(place, *SOURCES, "cause", "attempt")).alias("best")
    once = needed.groupBy(*PAIR).agg(best, F.count("*").alias("candidates"))
    return once.select(*PAIR, *(f"best.{name}" for name in (*SOURCES, "cause", "attempt")), "candidates")


def with_texts(pairs: DataFrame, texts: DataFrame, recipe_digest: bytes) -> DataFrame:
    """`pairs` with query_text and passage_text, found by the digests of their sources, which are dropped."""
    made = texts.where(F.col("recipe_digest") == F.lit(recipe_digest))
    for role, source in (("query", "text_source_digest"), ("passage", "source_digest")):
        of_role = made.where(F.col("role") == role).select(
            F.col("source_digest").alias(source), F.col("text").alias(f"{role}_text")
        )
        pairs = pairs.join(of_role, on=source, how="inner")
    return pairs.drop(*SOURCES)
