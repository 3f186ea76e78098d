"""Vectors of texts by an encoder: those that `embeddings` lacks are made through the gate and kept there."""

import time
from typing import Literal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark import tables
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
