"""Vectors of items, by the text that an encoder read."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F


def item_vectors(
    items: DataFrame, texts: DataFrame, embeddings: DataFrame, recipe_digest: bytes, scorer_digest: bytes
) -> DataFrame:
    """(item_id, text_digest, vector) of the items whose text an encoder has embedded as a passage."""
    made = texts.where((F.col("role") == "passage") & (F.col("recipe_digest") == F.lit(recipe_digest)))
    of = embeddings.where((F.col("role") == "passage") & (F.col("scorer_digest") == F.lit(scorer_digest)))
    read = items.select("item_id", "source_digest").join(
        made.select("source_digest", "text_digest"), on="source_digest", how="inner"
    )
    return read.join(of.select("text_digest", "vector"), on="text_digest", how="inner").select(
        "item_id", "text_digest", "vector"
    )
