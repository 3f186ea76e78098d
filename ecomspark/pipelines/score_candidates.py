"""Score what has no score: each distinct pair of a query's and an item's text, once per scorer."""

import math
import time
from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import ContractError
from ecomspark.features.scores import PAIR, lacking, pair_texts, standing
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.resources import StageResources, profile_of
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import CANDIDATES, ITEMS, QUERIES, SCORES, TEXTS
from ecomspark.scoring import CrossEncoderAt, Description, costs_of, score_pairs
from ecomspark.tables import Warehouse

JOB = "score_candidates"

READS = (CANDIDATES, QUERIES, ITEMS)


class Config(Settings):
    """Which checkpoint, and how its work is cut up."""

    checkpoint: Name = setting(..., "the cross-encoder: a folder in models_folder")
    token_budget: int | None = setting(
        None,
        "tokens of one forward pass; null: the best one, which each host finds by trying and remembers",
        unit="tokens",
        decides=False,
        ge=1,
    )
    resources: StageResources | None = setting(
        None, "a resource profile for the stage that scores; null: none; local mode never has one", decides=False
    )
    pairs_per_task: int = setting(
        2_000, "pairs of one Spark task: what a failed task does again", unit="pairs", decides=False, ge=1
    )
    max_tries: int = setting(3, "tries of a pair whose error may pass", unit="tries", ge=1)
    max_failed_share: float = setting(
        0.01, "stop when more than this share of the pairs tried meets an error", decides=False, ge=0, le=1
    )


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    data_type = config.data_types.get(config.checkpoint)
    checkpoint = open_checkpoint(config.models_folder, config.checkpoint, "cross_encoder", data_type=data_type)
    folder = str(checkpoint.folder.resolve())
    scorer = CrossEncoderAt(folder, checkpoint.scorer_digest, config.token_budget, data_type)
    return run_with(spark, config, run_id, checkpoint, scorer, as_of)


def run_with(
    spark: SparkSession,
    config: Config,
    run_id: str,
    checkpoint: Checkpoint,
    scorer: Description,
    as_of: date | None = None,
) -> Summary:
    """The run with any scorer that goes by the checkpoint's digest: what `run` does with the checkpoint itself."""
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest(checkpoint.scorer_digest.hex())
    with open_run(warehouse, JOB, run_id, reads=READS, settings_digest=digest, as_of=as_of) as current:
        if not current.is_replayed:
            with current.stage("pairs"):
                needed = _needed(current, checkpoint, config.max_tries).persist()
                count = needed.count()
                current.count(to_score=count)
            if count:
                with current.stage("score"):
                    _score(current, needed, count, checkpoint.scorer_digest, scorer, config)
                with current.stage("check"):
                    _check(current, needed, checkpoint.scorer_digest, config.max_failed_share)
            needed.unpersist()
    return current.summary()


def _needed(current: Run, checkpoint: Checkpoint, max_tries: int) -> DataFrame:
    recipe = checkpoint.card.recipe
    pairs = pair_texts(
        current.read(CANDIDATES),
        current.read(QUERIES),
        current.read(ITEMS),
        tables.read_memory(current.warehouse, TEXTS),
        recipe.digest,
    ).persist()
    counts = pairs.agg(
        F.count("*").alias("candidates"),
        F.count_if(F.col("query_digest").isNull() | F.col("passage_digest").isNull()).alias("without_text"),
    ).collect()[0]
    current.count(candidates=int(counts["candidates"]))
    if counts["without_text"]:
        raise ContractError(
            f"texts: expected a text for every candidate under the recipe of {checkpoint.name} "
            f"({recipe.digest.hex()}), found none for {counts['without_text']:,} of {counts['candidates']:,}; "
            "run build_texts with that recipe first"
        )
    wanted = pairs.select(*PAIR).distinct()
    scores = tables.read_memory(current.warehouse, SCORES, wanted)
    return lacking(pairs, standing(scores, checkpoint.scorer_digest), max_tries)


def _score(
    current: Run, needed: DataFrame, count: int, scorer_digest: bytes, scorer: Description, config: Config
) -> None:
    # A number of partitions that is given is kept: Spark would merge small ones into one long task. By ranges pairs of
    # one passage stand together, so it is tokenised once a window, and an item of many queries fills no task alone.
    by_passage = ("passage_digest", "query_digest")
    tasks = needed.repartitionByRange(math.ceil(count / config.pairs_per_task), *by_passage)
    tasks = tasks.sortWithinPartitions(*by_passage)
    spark = current.warehouse.spark
    costs, start = costs_of(spark), time.monotonic()
    scores = score_pairs(tasks, scorer, costs, profile_of(spark, config.resources))
    rows = scores.withColumn("scorer_digest", F.lit(scorer_digest))
    current.commit(tables.append_memory(current.warehouse, SCORES, rows, current.author))
    current.spent("score", costs.value, time.monotonic() - start)


def _check(current: Run, needed: DataFrame, scorer_digest: bytes, max_failed_share: float) -> None:
    """Count what came of it. Raises ContractError when too much failed: nothing should be ranked then."""
    tried = needed.select(*PAIR, "attempt")
    scores = tables.read_memory(current.warehouse, SCORES, tried.select(*PAIR))
    mine = scores.where(F.col("scorer_digest") == F.lit(scorer_digest)).join(tried, on=[*PAIR, "attempt"], how="inner")
    counts = mine.agg(
        F.count("logit").alias("scored"),
        F.count("error").alias("failed"),
        F.sum("token_count").alias("tokens"),
        F.count_if(F.col("cut_query_tokens") + F.col("cut_passage_tokens") > 0).alias("cut"),
    ).collect()[0]
    current.count(**{name: int(counts[name] or 0) for name in ("scored", "failed", "tokens", "cut")})
    if counts["failed"] > max_failed_share * (counts["scored"] + counts["failed"]):
        kinds = mine.where("error IS NOT NULL").groupBy("error", "error_kind").count().orderBy("error").collect()
        listed = ", ".join(f"{row['error']} ({row['error_kind']}) {row['count']:,}" for row in kinds)
        raise ContractError(
            f"scores: expected at most {max_failed_share:.2%} of the pairs to fail, found {counts['failed']:,} of "
            f"{counts['scored'] + counts['failed']:,}: {listed}; they are in the table scores; passing errors are "
            "tried again by the next run, lasting ones want the text or the checkpoint mended"
        )
