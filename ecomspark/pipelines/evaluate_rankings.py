"""How good the rankings are, by judgments: against BM25, the untuned encoder, and chance. To `run_metrics`."""

import logging
from datetime import date
from typing import Literal

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.embedding import cosines
from ecomspark.errors import ContractError
from ecomspark.evaluation import Measures, as_table, judged_figures, published_figures
from ecomspark.features import bm25 as lexical
from ecomspark.features.scores import pair_texts
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import (
    COLLECTION_STATISTICS,
    EMBEDDINGS,
    ITEMS,
    JUDGMENTS,
    QUERIES,
    RANKINGS,
    RUN_METRICS,
    SPLITS,
    TERMS,
    TEXTS,
)
from ecomspark.tables import Warehouse

JOB = "evaluate_rankings"

READS = (JUDGMENTS, SPLITS, QUERIES, ITEMS, RANKINGS, COLLECTION_STATISTICS)

PUBLISHES = (RUN_METRICS, EMBEDDINGS)

log = logging.getLogger("ecomspark")


class Config(Settings):
    """Which judgments, which rankings, which figures."""

    judgment_set: Name = setting(..., "which judgments")
    split: Name = setting("default", "which split of the queries")
    side: Literal["train", "validation", "test"] = setting("test", "which side of it")
    judged_variant: Name = setting("judged", "the variant that ranks judged items only, with the same policy")
    published_variant: Name | None = setting("main", "the variant that search shows; null: its figures are left out")
    encoder: Name | None = setting(None, "an untuned encoder to compare with, by cosine; null: none")
    token_budget: int | None = setting(
        None, "tokens of one forward pass of the encoder; null: found by trying", unit="tokens", decides=False, ge=1
    )
    k: int | None = setting(
        10,
        "places that ndcg, precision and recall look at; null: all, then without precision and recall, which would be "
        "the same in any order",
        unit="places",
        ge=1,
    )
    grade_threshold: float = setting(
        2.0, "grade from which an item counts as relevant, for mrr, precision, recall and auc"
    )
    resamples: int = setting(2_000, "bootstrap resamples of the queries", ge=100)
    shuffles: int = setting(200, "random orders a query, for chance", ge=1)
    seed: int = setting(20_111_031, "of resamples and shuffles")


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        settings_digest=config.deciding_digest(),
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("rankings"):
                judged = tables.kept(_judged(current, config))
                orders = _orders(current, config, judged)
                published = _published(current, config.published_variant, judged)
            with current.stage("metrics"):
                measures = Measures(
                    config.gains, config.k, config.grade_threshold, config.resamples, config.shuffles, config.seed
                )
                figures = judged_figures(orders, measures)
                if published is not None:
                    figures += published_figures(published, orders, measures)
                keys = {"job": JOB, "run_id": run_id, "judgment_set": config.judgment_set, "slice": "all"}
                rows = [tuple({**keys, **vars(figure)}[c.name] for c in RUN_METRICS.columns) for figure in figures]
                frame = spark.createDataFrame(rows, tables.ddl(RUN_METRICS))
                current.commit(tables.append_log(warehouse, RUN_METRICS, frame, current.author))
                current.count(figures=len(figures))
            judged.unpersist()
            for line in as_table(figures):
                log.info("%s: %s", JOB, line)
    return current.summary()


def _judged(current: Run, config: Config) -> DataFrame:
    """(query_id, item_id, grade) of the side that is evaluated."""
    of_side = current.read(SPLITS).where((F.col("split") == config.split) & (F.col("side") == config.side))
    of_set = current.read(JUDGMENTS).where(F.col("judgment_set") == config.judgment_set)
    judged = of_set.join(of_side.select("query_id"), on="query_id", how="inner")
    return judged.select("query_id", "item_id", "grade")


def _orders(current: Run, config: Config, judged: DataFrame) -> pd.DataFrame:
    """The judged pairs with what each ranker orders them by: final, model, bm25, cosine; all are higher is better.

    Null in `final` where the judged variant lacks the pair: it is left out for all rankers alike, but is in the ideal.
    """
    ranked = current.read(RANKINGS).where(F.col("variant") == config.judged_variant)
    of_final = ranked.select(
        "query_id", "item_id", (-F.col("rank")).cast("double").alias("final"), F.col("logit").alias("model")
    )
    queries, items = current.read(QUERIES), current.read(ITEMS)
    terms = tables.read_memory(current.warehouse, TERMS)
    of_version = F.col("statistics_version") == config.bm25.statistics_version
    statistics = current.read(COLLECTION_STATISTICS).where(of_version)
    asked = queries.join(judged.select("query_id").distinct(), on="query_id", how="left_semi")
    offered = items.join(judged.select("item_id").distinct(), on="item_id", how="left_semi")
    item_terms = lexical.item_terms(offered, terms, config.analysers, config.bm25)
    postings = lexical.postings(item_terms, statistics, config.bm25)
    query_terms = lexical.query_terms(asked, terms, config.analysers)
    of_bm25 = lexical.scores_of(judged, query_terms, postings).withColumnRenamed("score", "bm25")
    orders = judged.join(of_final, on=["query_id", "item_id"], how="left").join(
        of_bm25, on=["query_id", "item_id"], how="left"
    )
    if config.encoder:
        of_cosine = _cosines(current, config, judged, queries, items)
        orders = orders.join(of_cosine, on=["query_id", "item_id"], how="left")
    frame = orders.withColumn("query_id", F.hex("query_id")).fillna({"bm25": 0.0}).toPandas()
    if frame.empty or frame["final"].isna().all():
        raise ContractError(
            f"rankings: expected judged pairs of {config.judgment_set} ({config.side}) under the variant "
            f"{config.judged_variant}, found none; build, score and rank with the source `judged` first"
        )
    current.count(judged_pairs=len(frame), not_ranked=int(frame["final"].isna().sum()))
    return frame.sort_values(["query_id", "item_id"], ignore_index=True)


def _cosines(current: Run, config: Config, judged: DataFrame, queries: DataFrame, items: DataFrame) -> DataFrame:
    """(query_id, item_id, cosine) by the encoder that the settings name."""
    name = config.encoder or ""
    data_type = config.data_types.get(name)
    encoder = open_checkpoint(config.models_folder, name, "encoder", data_type=data_type)
    texts = tables.read_memory(current.warehouse, TEXTS)
    pairs = current.keep(pair_texts(judged, queries, items, texts, encoder.card.recipe.digest))
    return cosines(current, pairs, encoder, data_type, config.token_budget)


def _published(current: Run, variant: str | None, judged: DataFrame) -> pd.DataFrame | None:
    """The published variant's ranking of the judged queries, with the grade where there is one; None of no variant."""
    if variant is None:
        return None
    asked = judged.select("query_id").distinct()
    ranked = current.read(RANKINGS).where(F.col("variant") == variant)
    shown = ranked.join(asked, on="query_id", how="left_semi").select("query_id", "item_id", "rank")
    graded = shown.join(judged, on=["query_id", "item_id"], how="left")
    frame = graded.select(F.hex("query_id").alias("query_id"), "rank", "grade").toPandas()
    return frame.sort_values(["query_id", "rank"], ignore_index=True)
