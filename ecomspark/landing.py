"""What models make of texts, landed in the memory tables under its digests: scores of pairs, vectors of texts.

Jobs that need a score or a vector ask here, so that what one job has made no other makes again.
"""

import logging
import math
import time
from collections.abc import Iterator
from typing import Literal

from pyspark.resource import ResourceProfile
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark import parts, tables
from ecomspark.errors import ContractError
from ecomspark.features.scores import SOURCES, with_texts
from ecomspark.models.checkpoint import Checkpoint, DataType
from ecomspark.runs import Run
from ecomspark.schemas import EMBEDDINGS, SCORES, TEXTS
from ecomspark.scoring import Description, EmbedderAt, costs_of, embed_texts, score_pairs

log = logging.getLogger("ecomspark")


def check_texts(pairs: DataFrame, checkpoint: Checkpoint, what: str) -> int:
    """How many pairs there are. Raises ContractError when one has no text. `pairs`: as `features.scores.pair_texts`
    gives them; `what`: what each of them is to the caller."""
    without = F.count_if(F.col("query_digest").isNull() | F.col("passage_digest").isNull()).alias("without")
    counts = pairs.agg(F.count("*").alias("looked_at"), without).collect()[0]
    if counts["without"]:
        recipe = checkpoint.card.recipe
        raise ContractError(
            f"texts: expected a text for every {what} under the recipe of {checkpoint.name} "
            f"({recipe.digest.hex()}), found none for {counts['without']:,} of {counts['looked_at']:,}; "
            "run build_texts with that recipe first"
        )
    return int(counts["looked_at"])


def score_by_parts(
    current: Run,
    needed: DataFrame,
    checkpoint: Checkpoint,
    scorer: Description,
    pairs_per_commit: int,
    pairs_per_task: int,
    profile: ResourceProfile | None = None,
) -> Iterator[DataFrame]:
    """Score pairs part by part, each landed before the next is begun: a death loses the part at hand.

    `needed`: what `features.scores.distinct_pairs` gives. Yields the pairs of each part when they have landed.
    """
    warehouse, spark = current.warehouse, current.warehouse.spark
    tables.create(warehouse, SCORES)
    placed = current.keep(needed.withColumn("place", tables.place_of(warehouse, SCORES, F.col("query_digest"))))
    counts = [(row["place"], int(row["count"])) for row in placed.groupBy("place").count().collect()]
    for part, said in parts.told(parts.cut(counts, pairs_per_commit), "pairs"):
        log.info("%s: %s", current.author.job, said)
        mine = placed.where(F.col("place").between(part.first, part.last)).drop("place", "cause", "candidates")
        sources = mine.select(F.explode(F.array(*SOURCES)).alias("source_digest")).distinct()
        texts = tables.read_memory(warehouse, TEXTS, sources, tables.buckets_of(warehouse, TEXTS, sources))
        pairs = with_texts(mine, texts, checkpoint.card.recipe.digest)
        # A number of partitions that is given is kept: Spark would merge small ones into one long task. By ranges pairs
        # of one passage stand together, so it is tokenised once a window, and an item of many queries fills no task.
        by_passage = ("passage_digest", "query_digest")
        tasks = pairs.repartitionByRange(math.ceil(part.count / pairs_per_task), *by_passage)
        costs, start = costs_of(spark), time.monotonic()
        scores = score_pairs(tasks.sortWithinPartitions(*by_passage), scorer, costs, profile)
        rows = scores.withColumn("scorer_digest", F.lit(checkpoint.scorer_digest))
        current.commit(tables.append_memory(warehouse, SCORES, rows, current.author))
        current.spent("score", costs.value, time.monotonic() - start)
        yield mine


def embedded(current: Run, texts: DataFrame, embedder: EmbedderAt, role: Literal["query", "passage"]) -> DataFrame:
    """(text_digest, vector) of all that the encoder has embedded in that role, `texts` (text_digest, text) among them:
    those that are not there yet are made and kept.

    A job need not hold the lease of `embeddings`: rows of two writers at once do no harm there.
    """
    scorer_digest = F.lit(embedder.scorer_digest)
    of_role = (F.col("scorer_digest") == scorer_digest) & (F.col("role") == role)
    there = tables.read_memory(current.warehouse, EMBEDDINGS).where(of_role)
    missing = texts.dropDuplicates(["text_digest"]).join(
        there.select("text_digest"), on="text_digest", how="left_anti"
    )
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
    """(query_id, item_id, cosine) by an encoder, rounded to six places; vectors that are not there yet are made and
    kept. `pairs`: as `features.scores.pair_texts` gives them, persisted: they are executed several times."""
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
