"""Vectors of texts by an encoder: those that `embeddings` lacks are made through the gate and kept there."""

import logging
import math
import time
from typing import Literal

from pyspark.resource import ResourceProfile
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark import parts, tables
from ecomspark.models.checkpoint import Checkpoint, DataType
from ecomspark.runs import Run
from ecomspark.schemas import EMBEDDINGS
from ecomspark.scoring import EmbedderAt, costs_of, embed_texts

log = logging.getLogger("ecomspark")

Role = Literal["query", "passage"]

_TEXTS_A_COMMIT = 100_000
_TEXTS_A_TASK = 2_000


def embedder_of(encoder: Checkpoint, data_type: DataType | None, token_budget: int | None) -> EmbedderAt:
    """An encoder as it travels to executors."""
    folder = str(encoder.folder.resolve())
    return EmbedderAt(folder, encoder.scorer_digest, token_budget, data_type, encoder.card.vector_type)


def vectors_of(current: Run, scorer_digest: bytes, role: Role) -> DataFrame:
    """(text_digest, vector) of all that an encoder has embedded in a role."""
    of_role = (F.col("scorer_digest") == F.lit(scorer_digest)) & (F.col("role") == role)
    return tables.read_memory(current.warehouse, EMBEDDINGS).where(of_role).select("text_digest", "vector")


def lacking_vectors(current: Run, texts: DataFrame, scorer_digest: bytes, role: Role) -> DataFrame:
    """Those of `texts` (text_digest and more) that the encoder has not embedded in that role, each once."""
    there = vectors_of(current, scorer_digest, role).select("text_digest")
    return texts.dropDuplicates(["text_digest"]).join(there, on="text_digest", how="left_anti")


def embedded(current: Run, texts: DataFrame, embedder: EmbedderAt, role: Role) -> DataFrame:
    """(text_digest, vector) of all that the encoder has embedded in that role, `texts` (text_digest, text) among them.

    A job need not hold the lease of `embeddings`: rows of two writers at once do no harm there.
    """
    embed_by_parts(current, lacking_vectors(current, texts, embedder.scorer_digest, role), embedder, role)
    return vectors_of(current, embedder.scorer_digest, role)


def embed_by_parts(
    current: Run,
    missing: DataFrame,
    embedder: EmbedderAt,
    role: Role,
    texts_per_commit: int = _TEXTS_A_COMMIT,
    profile: ResourceProfile | None = None,
) -> None:
    """Embed texts part by part, each landed before the next is begun: a death loses the part at hand.

    `missing`: (text_digest, text), each once. Counts what was `embedded`; where nothing is missing, nothing.
    """
    warehouse = current.warehouse
    tables.create(warehouse, EMBEDDINGS)
    placed = current.keep(missing.withColumn("place", tables.place_of(warehouse, EMBEDDINGS, F.col("text_digest"))))
    counts = [(row["place"], int(row["count"])) for row in placed.groupBy("place").count().collect()]
    for part, said in parts.told(parts.cut(counts, texts_per_commit), "texts"):
        log.info("%s: %s: %s", current.author.job, role, said)
        mine = placed.where(F.col("place").between(part.first, part.last)).select("text_digest", "text")
        # A number of partitions that is given is kept: Spark would merge small ones into one long task.
        tasks = mine.repartition(math.ceil(part.count / _TEXTS_A_TASK), "text_digest")
        costs, start = costs_of(warehouse.spark), time.monotonic()
        rows = embed_texts(tasks, embedder, role, costs, profile).select(
            "text_digest",
            F.col("vector").cast("array<float>").alias("vector"),
            F.lit(role).alias("role"),
            F.lit(embedder.scorer_digest).alias("scorer_digest"),
        )
        commit = tables.append_memory(warehouse, EMBEDDINGS, rows, current.author)
        current.count(embedded=commit.inserted)
        current.commit(commit)
        current.spent(f"embed {role}", costs.value, time.monotonic() - start)


def cosines(
    current: Run, pairs: DataFrame, encoder: Checkpoint, data_type: DataType | None, token_budget: int | None
) -> DataFrame:
    """(query_id, item_id, cosine) by an encoder, rounded to six places. `pairs`: as `features.scores.pair_texts` gives
    them, persisted: they are executed several times."""
    embedder = embedder_of(encoder, data_type, token_budget)
    joined = pairs.select("query_id", "item_id", "query_digest", "passage_digest")
    roles: tuple[Role, ...] = ("query", "passage")
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
