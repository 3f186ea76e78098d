"""Rankings from scores, prices, sales, ratings, stock and age. Needs no model: a card's calibration is enough."""

from datetime import date
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import ContractError
from ecomspark.features.ranking import Policy, kept_back, of_policy, ranked
from ecomspark.features.scores import PAIR, pair_texts, standing
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import CANDIDATES, ITEMS, QUERIES, RANKINGS, SCORES, TEXTS
from ecomspark.tables import Warehouse
from ecomspark.text import settings_digest

JOB = "rank_candidates"

READS = (CANDIDATES, QUERIES, ITEMS)

_ITEM_FACTS = ("price", "currency", "category", "sold_count", "rating", "rating_count", "is_in_stock", "listed_at")


class Config(Settings):
    """Which scores, and the policy of each variant."""

    checkpoint: Name = setting(..., "the cross-encoder whose scores are ranked: a folder in models_folder")
    variants: dict[Name, Policy] = setting(
        {"main": Policy()}, "policy by name; a variant that is not named keeps what it has published", min_length=1
    )
    min_scored_share: float = setting(
        1.0,
        "share of a query's candidates, lasting errors aside, that must be scored; else its old ranking stays",
        ge=0,
        le=1,
    )
    max_failed_share: float = setting(
        0.01,
        "stop when more than this share of all candidates has an error instead of a score",
        decides=False,
        ge=0,
        le=1,
    )


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    checkpoint = open_checkpoint(
        config.models_folder, config.checkpoint, "cross_encoder", data_type=config.data_types.get(config.checkpoint)
    )
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    made_of = (checkpoint.scorer_digest.hex(), checkpoint.card.calibration_digest.hex())
    digest = config.deciding_digest(*made_of)
    with open_run(warehouse, JOB, run_id, reads=READS, settings_digest=digest, as_of=as_of) as current:
        if not current.is_replayed:
            with current.stage("scores"):
                candidates = _scored_candidates(current, checkpoint).persist()
                _check(current, candidates, config.max_failed_share)
            with current.stage("rank"):
                _publish(current, candidates, config, checkpoint)
            candidates.unpersist()
    return current.summary()


def _scored_candidates(current: Run, checkpoint: Checkpoint) -> DataFrame:
    """Candidates with sources, item facts, and the standing of their pair: logit, or error_kind, or neither."""
    candidates, items = current.read(CANDIDATES), current.read(ITEMS)
    texts = tables.read_memory(current.warehouse, TEXTS)
    pairs = pair_texts(candidates, current.read(QUERIES), items, texts, checkpoint.card.recipe.digest)
    pairs = pairs.drop("query_text", "passage_text")
    scores = tables.read_memory(current.warehouse, SCORES, pairs.select(*PAIR).distinct())
    return (
        pairs.join(candidates.select("query_id", "item_id", "sources"), on=["query_id", "item_id"], how="inner")
        .join(items.select("item_id", *_ITEM_FACTS), on="item_id", how="inner")
        .join(standing(scores, checkpoint.scorer_digest), on=PAIR, how="left")
    )


def _check(current: Run, candidates: DataFrame, max_failed_share: float) -> None:
    counts = candidates.agg(
        F.count("*").alias("candidates"), F.count("logit").alias("scored"), F.count("error_kind").alias("failed")
    ).collect()[0]
    current.count(**{name: int(counts[name]) for name in ("candidates", "scored", "failed")})
    if counts["failed"] > max_failed_share * counts["candidates"]:
        raise ContractError(
            f"scores: expected at most {max_failed_share:.2%} of the candidates to have an error, found "
            f"{counts['failed']:,} of {counts['candidates']:,}; nothing was ranked; see `error` in the table scores"
        )


def _publish(current: Run, candidates: DataFrame, config: Config, checkpoint: Checkpoint) -> None:
    if current.as_of is None:
        raise ContractError("as_of: expected a date, found no input that has one; give --as-of")
    rows, kept = [], []
    for variant, policy in config.variants.items():
        mine = of_policy(candidates, policy)
        waiting = kept_back(mine, config.min_scored_share)
        kept.append(waiting.withColumn("variant", F.lit(variant)))
        ready = mine.join(waiting, on="query_id", how="left_anti")
        of_variant = ranked(ready, variant, policy, checkpoint.card.calibration, current.as_of)
        rows.append(of_variant.withColumn("settings_digest", F.lit(settings_digest(policy))))
    rankings = reduce(DataFrame.unionByName, rows).select(
        "*",
        F.lit(checkpoint.scorer_digest).alias("scorer_digest"),
        F.lit(checkpoint.card.calibration_digest).alias("calibration_digest"),
    )
    keep = reduce(DataFrame.unionByName, kept).persist()
    in_scope = F.col("variant").isin(list(config.variants))
    change = tables.compare(current.warehouse, RANKINGS, rankings, current.author, scope=in_scope, keep=keep)
    current.count(
        ranked=change.given,
        kept_back_queries=keep.count(),
        new=change.inserted,
        changed=change.updated,
        removed=change.deleted,
    )
    current.commit(tables.publish(current.warehouse, change, current.author))
    keep.unpersist()
