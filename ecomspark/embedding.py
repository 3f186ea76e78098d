"""Vectors of texts by an encoder: those that `embeddings` lacks are made through the gate and kept there."""

import time
from typing import Literal

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.models.checkpoint import Checkpoint, DataType
from ecomspark.runs import Run
from ecomspark.schemas import EMBEDDINGS
from ecomspark.scoring import EmbedderAt, costs_of, embed_texts


def embedded(current: Run, texts: DataFrame, embedder: EmbedderAt, role: Literal["query", "passage"]) -> DataFrame:
    """(text_digest, vector) of all that the encoder has embedded in that role, `texts` (text_digest, text) among them.

    A job need not hold the lease of `embeddings`: rows of two writers at once do no harm there.
    """
    scorer_digest = F.lit(embedder.scorer_digest)
    of_role = (F.col("scorer_digest") == scorer_digest) & (F.col("role") == role)
    there = tables.read_memory(current.warehouse, EMBEDDINGS).where(of_role)
    missing = texts.dropDuplicates(["text_digest"]).join(there.select("text_digest"), on="text_digest", how="left_anti")
    if not missing.isEmpty():
        costs, start = costs_of(current.warehouse.spark), time.monotonic()
        vectors = embed_texts(missing, embedder, role, costs)
        rows = vectors.select(
            "text_digest",
            F.col("vector").cast("array<float>").alias("vector"),
            F.lit(role).alias("role"),
            scorer_digest.alias("scorer_digest"),
        )
        commit = tables.append_memory(current.warehouse, EMBEDDINGS, rows, current.author)
        current.count(embedded=commit.inserted)
        current.commit(commit)
        current.spent(f"embed {role}", costs.value, time.monotonic() - start)
    return tables.read_memory(current.warehouse, EMBEDDINGS).where(of_role).select("text_digest", "vector")


def cosines(
    current: Run, pairs: DataFrame, encoder: Checkpoint, data_type: DataType | None, token_budget: int | None
) -> DataFrame:
    """(query_id, item_id, cosine) by an encoder, rounded to six places. `pairs`: as `features.scores.pair_texts` gives
    them, persisted: they are executed several times."""
    folder, vector_type = str(encoder.folder.resolve()), encoder.card.vector_type
    embedder = EmbedderAt(folder, encoder.scorer_digest, token_budget, data_type, vector_type)
    joined = pairs.select("query_id", "item_id", "query_digest", "passage_digest")
    roles: tuple[Literal["query", "passage"], ...] = ("query", "passage")
    for role in roles:
        wanted = pairs.select(F.col(f"{role}_digest").alias("text_digest"), F.col(f"{role}_text").alias("text"))
        vectors = embedded(current, wanted, embedder, role)
        named = vectors.select(F.col("text_digest").alias(f"{role}_digest"), F.col("vector").alias(f"{role}_vector"))
        joined = joined.join(named, on=f"{role}_digest", how="inner")
    cosine = F.round(_dot("query_vector", "passage_vector") / F.sqrt(_dot("query_vector") * _dot("passage_vector")), 6)
    return joined.select("query_id", "item_id", cosine.alias("cosine"))


def _dot(one: str, other: str | None = None) -> Column:
    products = F.zip_with(one, other or one, lambda x, y: x.cast("double") * y)
    return F.aggregate(products, F.lit(0.0), lambda total, x: total + x)
