"""Scores of pairs, landed part by part in `scores`: jobs that need a score ask here, so nothing is scored twice."""

import logging
import math
import time
from collections.abc import Iterator

from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark import parts, tables
from ecomspark.errors import ContractError
from ecomspark.features.scores import SOURCES, with_texts
from ecomspark.models.checkpoint import Checkpoint
from ecomspark.runs import Run
from ecomspark.schemas import SCORES, TEXTS
from ecomspark.scoring import Description, costs_of, score_pairs

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
