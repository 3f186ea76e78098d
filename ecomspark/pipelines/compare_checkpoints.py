"""Which of two checkpoints orders judged items better: paired differences with intervals, by slice. To `run_metrics`.

Judged pairs that a cross-encoder has not scored yet are scored here, and kept in `scores` for whoever asks next.
"""

import logging
from datetime import date
from typing import Literal

import pandas as pd
from pydantic import model_validator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import paired, tables
from ecomspark.config import Name, Settings, setting
from ecomspark.embedding import cosines
from ecomspark.errors import ContractError
from ecomspark.evaluation import Measures
from ecomspark.features.scores import PAIR, distinct_pairs, lacking, pair_texts, standing
from ecomspark.landing import check_texts, score_by_parts
from ecomspark.metrics import Interval
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.paired import Compared
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import EMBEDDINGS, ITEMS, JUDGMENTS, QUERIES, RUN_METRICS, SCORES, SPLITS, TEXTS
from ecomspark.scoring import CrossEncoderAt
from ecomspark.slices import ALL, Bounds, slices_of
from ecomspark.tables import Warehouse

JOB = "compare_checkpoints"

READS = (JUDGMENTS, SPLITS, QUERIES, ITEMS)

PUBLISHES = (SCORES, EMBEDDINGS, RUN_METRICS)

log = logging.getLogger("ecomspark")


class Config(Settings):
    """Which two checkpoints, by which judgments, in which slices."""

    a: Name = setting(..., "a checkpoint in models_folder: what the other is compared with")
    b: Name = setting(..., "a checkpoint in models_folder; cross-encoders go by their logit, encoders by cosine")
    judgment_set: Name = setting(..., "which judgments")
    split: Name = setting("default", "which split of the queries")
    side: Literal["train", "validation", "test"] = setting("test", "which side of it")
    k: int = setting(10, "places that ndcg, precision and recall look at", unit="places", ge=1)
    grade_threshold: float = setting(
        2, "grade from which an item counts as relevant, for mrr, precision, recall, both auc and a query's category"
    )
    resamples: int = setting(2_000, "bootstrap resamples of the queries", ge=100)
    seed: int = setting(20_111_031, "of the resamples")
    min_queries: int = setting(10, "figures of a slice over fewer are left out", unit="queries", ge=1)
    head_share: float = setting(1 / 3, "the most asked queries, up to this share of traffic, are its head", gt=0, lt=1)
    tail_share: float = setting(1 / 3, "the least asked ones, from where this share is left, are its tail", gt=0, lt=1)
    longest_words: int = setting(4, "queries of so many words or more are one slice", unit="words", ge=2)
    categories: int = setting(8, "categories with the most queries that are slices; the rest is one", ge=1)
    category_parts: int = setting(1, "first parts of a category's path that name it", ge=1)
    max_tries: int = setting(3, "tries of a pair whose error may pass", unit="tries", ge=1)
    max_failed_share: float = setting(
        0.01, "stop when more than this share of the pairs has no score", decides=False, ge=0, le=1
    )
    token_budget: int | None = setting(
        None, "tokens of one forward pass; null: found by trying", unit="tokens", decides=False, ge=1
    )
    pairs_per_commit: int = setting(
        500_000, "pairs scored between two commits: the most that a death loses", unit="pairs", decides=False, ge=1
    )
    pairs_per_task: int = setting(
        2_000, "pairs of one Spark task: what a failed task does again", unit="pairs", decides=False, ge=1
    )

    @model_validator(mode="after")
    def _two(self) -> "Config":
        if self.a == self.b:
            raise ValueError("a and b: expected two checkpoints, found one")
        if self.head_share + self.tail_share > 1:
            raise ValueError("head_share and tail_share: expected 1 at most together")
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    a, b = _opened(config, config.a), _opened(config, config.b)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        settings_digest=config.deciding_digest(a.scorer_digest.hex(), b.scorer_digest.hex()),
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            judged = current.keep(_judged(current, config))
            with current.stage("score"):
                said = [_said(current, config, judged, checkpoint) for checkpoint in (a, b)]
            with current.stage("metrics"):
                pairs = _frame(current, config, judged, said, _trained_on(current, a, b))
                compared = _compared(config, pairs)
                frame = spark.createDataFrame(_rows(config, run_id, compared), tables.ddl(RUN_METRICS))
                current.commit(tables.append_log(warehouse, RUN_METRICS, frame, current.author))
                current.count(figures=len(compared.comparisons), slices_left_out=len(compared.left_out))
            # Names of the other slices may come from the shop's rows: they are in the table only.
            of_all = [of for of in compared.comparisons if of.slice == ALL]
            for line in (*paired.as_table(of_all, config.a, config.b), *paired.not_shown(of_all)):
                log.info("%s: %s", JOB, line)
    return current.summary()


def comparisons_of(warehouse: Warehouse, config: Config, run_id: str) -> list[paired.Comparison]:
    """What a run that is over has put into `run_metrics`, in reading order."""
    rows = tables.read(warehouse, RUN_METRICS, tables.snapshot(warehouse, RUN_METRICS))
    mine = rows.where((F.col("job") == JOB) & (F.col("run_id") == run_id)).collect()
    by_place = {(row["ranker"], row["slice"], row["metric"]): row for row in mine}
    found = []
    for row in mine:
        if row["ranker"] == config.a:
            other = by_place[config.b, row["slice"], row["metric"]]
            a, b = (Interval(of["value"], of["low"], of["high"]) for of in (row, other))
            difference = Interval(row["difference"], row["difference_low"], row["difference_high"])
            counts = (row["query_count"], row["omitted_count"])
            found.append(paired.Comparison(row["slice"], row["metric"], a, b, difference, *counts))
    return paired.in_reading_order(found)


def _opened(config: Config, name: str) -> Checkpoint:
    return open_checkpoint(config.models_folder, name, data_type=config.data_types.get(name))


def _judged(current: Run, config: Config) -> DataFrame:
    """(query_id, item_id, grade) of the side that is compared on."""
    of_side = current.read(SPLITS).where((F.col("split") == config.split) & (F.col("side") == config.side))
    of_set = current.read(JUDGMENTS).where(F.col("judgment_set") == config.judgment_set)
    return of_set.join(of_side.select("query_id"), on="query_id", how="inner").select("query_id", "item_id", "grade")


def _said(current: Run, config: Config, judged: DataFrame, checkpoint: Checkpoint) -> DataFrame:
    """(query_id, item_id, said): the logit or cosine of every judged pair whose item is there; null where the pair met
    an error. What is not in the tables yet is made, and kept there."""
    texts = tables.read_memory(current.warehouse, TEXTS)
    recipe = checkpoint.card.recipe
    read = pair_texts(judged, current.read(QUERIES), current.read(ITEMS), texts, recipe.digest)
    pairs = current.keep(read)
    check_texts(pairs, checkpoint, "judged pair")
    data_type = config.data_types.get(checkpoint.name)
    if checkpoint.card.kind == "encoder":
        of_pairs = cosines(current, pairs, checkpoint, data_type, config.token_budget)
        return of_pairs.withColumnRenamed("cosine", "said")
    wanted = pairs.select(*PAIR).distinct()

    def scores() -> DataFrame:
        return standing(tables.read_memory(current.warehouse, SCORES, wanted), checkpoint.scorer_digest)

    lacked = lacking(pairs.drop("query_text", "passage_text"), scores(), config.max_tries)
    needed = current.keep(distinct_pairs(lacked.withColumn("cause", F.lit(JOB)), [JOB]))
    if not needed.isEmpty():
        folder = str(checkpoint.folder.resolve())
        scorer = CrossEncoderAt(folder, checkpoint.scorer_digest, config.token_budget, data_type)
        sizes = (config.pairs_per_commit, config.pairs_per_task)
        for part in score_by_parts(current, needed, checkpoint, scorer, *sizes):
            current.count(scored=part.count())
    return pairs.join(scores(), on=PAIR, how="left").select("query_id", "item_id", F.col("logit").alias("said"))


def _trained_on(current: Run, *checkpoints: Checkpoint) -> DataFrame | None:
    """(item_id) of the training pairs of either checkpoint, as their judgments and splits are now; None when no card
    names any."""
    found: DataFrame | None = None
    for settings in (checkpoint.card.settings for checkpoint in checkpoints):
        if not {"judgment_set", "split"} <= set(settings):
            continue
        is_train = (F.col("split") == settings["split"]) & (F.col("side") == "train")
        learnt = current.read(SPLITS).where(is_train).select("query_id")
        of_set = current.read(JUDGMENTS).where(F.col("judgment_set") == settings["judgment_set"])
        items = of_set.join(learnt, on="query_id", how="left_semi").select("item_id")
        found = items if found is None else found.unionByName(items)
    return found and found.distinct()


def _frame(
    current: Run, config: Config, judged: DataFrame, said: list[DataFrame], trained_on: DataFrame | None
) -> pd.DataFrame:
    """The judged pairs with what `slices_of` and `paired.compare` read. Raises ContractError when there are none, or
    when too many of those whose item is there have no score."""
    of_query = current.read(QUERIES).select(
        "query_id", "locale", "traffic", F.size(F.split("query_text", " ")).alias("words")
    )
    of_item = current.read(ITEMS).select("item_id", "category", F.lit(True).alias("is_there"))
    pairs = judged.join(of_query, on="query_id", how="inner").join(of_item, on="item_id", how="left")
    for side, of_side in zip(("a", "b"), said, strict=True):
        pairs = pairs.join(of_side.withColumnRenamed("said", side), on=["query_id", "item_id"], how="left")
    if trained_on is not None:
        pairs = pairs.join(trained_on.withColumn("_seen", F.lit(True)), on="item_id", how="left")
    is_new = F.lit(None).cast("boolean") if trained_on is None else F.col("_seen").isNull()
    frame = pairs.select(
        F.hex("query_id").alias("query_id"), "item_id", "grade", "a", "b", "locale", "traffic", "words", "category",
        F.coalesce("is_there", F.lit(False)).alias("is_there"), is_new.alias("is_new"),
    ).toPandas()  # fmt: skip
    lacks = frame["a"].isna() | frame["b"].isna()
    if lacks.all():
        raise ContractError(
            f"judgments: expected pairs of {config.judgment_set} on the {config.side} side of split {config.split} "
            f"that both checkpoints have scored, found none of {len(frame):,}; judge some, or name another side"
        )
    failed = int((lacks & frame["is_there"]).sum())
    if failed > config.max_failed_share * len(frame):
        raise ContractError(
            f"scores: expected at most {config.max_failed_share:.2%} of the judged pairs to have no score, found "
            f"{failed:,} of {len(frame):,}; their errors are in the table scores"
        )
    gone = int((~frame["is_there"]).sum())
    current.count(judged_pairs=len(frame), compared_pairs=len(frame) - failed - gone, failed=failed, gone=gone)
    return frame.sort_values(["query_id", "item_id"], ignore_index=True)


def _compared(config: Config, pairs: pd.DataFrame) -> Compared:
    measures = Measures(config.gains, config.k, config.grade_threshold, config.resamples, shuffles=0, seed=config.seed)
    bounds = Bounds(
        config.head_share, config.tail_share, config.longest_words, config.categories, config.category_parts,
        config.grade_threshold,
    )  # fmt: skip
    return paired.compare(pairs, slices_of(pairs, bounds), measures, config.min_queries)


def _rows(config: Config, run_id: str, compared: Compared) -> list[tuple[object, ...]]:
    """Two rows of `run_metrics` a comparison; that of A has the difference."""
    rows = []
    for of in compared.comparisons:
        shared = {"job": JOB, "run_id": run_id, "judgment_set": config.judgment_set, "slice": of.slice,
                  "metric": of.metric, "query_count": of.query_count, "omitted_count": of.omitted_count}  # fmt: skip
        lead = {"difference": of.difference.mean, "difference_low": of.difference.low,
                "difference_high": of.difference.high}  # fmt: skip
        for name, side, more in ((config.a, of.a, lead), (config.b, of.b, {})):
            row = {**shared, "ranker": name, "value": side.mean, "low": side.low, "high": side.high, **more}
            rows.append(tuple(row.get(column) for column in RUN_METRICS.column_names))
    return rows
