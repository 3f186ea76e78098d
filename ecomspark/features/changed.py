"""From what changed in tables to the candidates that must be scored and the queries that must be ranked again.

What changed is what `tables.changes` says: (key, old, new), old null for what came and new null for what went.
"""

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark.features.scores import PAIR, pair_texts

NEW, TEXT, SCORER, RETRIED = "new", "changed_text", "changed_scorer", "retried"


def touched_candidates(
    candidates: DataFrame, of_candidates: DataFrame, of_items: DataFrame, of_queries: DataFrame
) -> DataFrame:
    """The candidates that came, or whose item's or query's text changed: (query_id, item_id, cause).

    `of_items`, `of_queries`: changes in the digests of their sources.
    """
    came = of_candidates.where("old IS NULL").select("query_id", "item_id", F.lit(True).alias("_came"))
    items = of_items.where("new IS NOT NULL").select("item_id", F.col("old").isNull().alias("_item"))
    queries = of_queries.where("new IS NOT NULL").select("query_id", F.col("old").isNull().alias("_query"))
    marked = (
        candidates.select("query_id", "item_id")
        .join(came, on=["query_id", "item_id"], how="left")
        .join(items, on="item_id", how="left")
        .join(queries, on="query_id", how="left")
    )
    is_new = F.coalesce(F.col("_came"), F.col("_item") | F.col("_query"), F.col("_item"), F.col("_query"))
    cause = F.when(is_new, NEW).when(is_new.isNotNull(), TEXT)
    return marked.select("query_id", "item_id", cause.alias("cause")).where(F.col("cause").isNotNull())


def gone_candidates(
    candidates: DataFrame, of_candidates: DataFrame, of_items: DataFrame, of_queries: DataFrame
) -> DataFrame:
    """The candidates that went, themselves or with their item or query: (query_id, item_id)."""
    went = of_candidates.where("new IS NULL").select("query_id", "item_id")
    pairs = candidates.select("query_id", "item_id")
    of_item = pairs.join(of_items.where("new IS NULL").select("item_id"), on="item_id", how="left_semi")
    of_query = pairs.join(of_queries.where("new IS NULL").select("query_id"), on="query_id", how="left_semi")
    pair = ("query_id", "item_id")
    return went.unionByName(of_item.select(*pair)).unionByName(of_query.select(*pair)).distinct()


def queries_of_items(candidates: DataFrame, item_ids: DataFrame) -> DataFrame:
    """(query_id) of the queries that have one of the items among their candidates."""
    return candidates.join(item_ids, on="item_id", how="left_semi").select("query_id").distinct()


def queries_of_pairs(pairs: DataFrame, queries: DataFrame, texts: DataFrame, recipe_digest: bytes) -> DataFrame:
    """(query_id) of the queries whose text is that of one of `pairs` (query_digest, passage_digest)."""
    made = texts.where((F.col("role") == "query") & (F.col("recipe_digest") == F.lit(recipe_digest)))
    asked = made.join(
        pairs.select(F.col("query_digest").alias("text_digest")).distinct(), on="text_digest", how="left_semi"
    )
    sources = asked.select(F.col("source_digest").alias("text_source_digest"))
    return queries.join(sources, on="text_source_digest", how="left_semi").select("query_id")


def candidates_of_pairs(
    pairs: DataFrame,
    candidates: DataFrame,
    queries: DataFrame,
    items: DataFrame,
    texts: DataFrame,
    recipe_digest: bytes,
) -> DataFrame:
    """(query_id, item_id) of those of `candidates` whose texts are one of `pairs` (query_digest, passage_digest)."""
    read = pair_texts(candidates.select("query_id", "item_id"), queries, items, texts, recipe_digest)
    return read.join(pairs.select(*PAIR).distinct(), on=PAIR, how="left_semi").select("query_id", "item_id")


def changed_fields(changed: DataFrame, columns: Sequence[str]) -> dict[str, int]:
    """In how many rows that were there before and after each column differs; those in which it never does left out."""
    stayed = changed.where("old IS NOT NULL AND new IS NOT NULL")
    differ = {name: ~F.col(f"old.{name}").eqNullSafe(F.col(f"new.{name}")) for name in columns}
    counts = stayed.agg(*(F.count_if(is_other).alias(name) for name, is_other in differ.items())).collect()[0]
    return {name: int(counts[name]) for name in columns if counts[name]}
