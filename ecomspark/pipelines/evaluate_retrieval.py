"""How much of what is relevant the first stage finds: recall of BM25, of embeddings, and of both fused, by slice. To
`run_metrics`; and the queries that no source serves well, to `unserved_queries`.

Both sources search anew for every query, to the deepest place that is measured: `candidates` says what was proposed at
some time.
"""

import logging
from datetime import date
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field, model_validator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import ContractError
from ecomspark.evaluation import Figure, Measures, as_table, recall_figures
from ecomspark.features import bm25 as lexical
from ecomspark.features.candidates import BM25, EMBEDDING, fused
from ecomspark.features.unserved import unserved
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.plans import Plan, as_pins
from ecomspark.retrieval import Search, checked_item_terms, nearest_items
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import (
    COLLECTION_STATISTICS,
    ITEMS,
    JUDGMENTS,
    QUERIES,
    RUN_METRICS,
    SPLITS,
    TERMS,
    UNSERVED_QUERIES,
)
from ecomspark.slices import ALL, Bounds, slices_of
from ecomspark.tables import Warehouse

JOB = "evaluate_retrieval"

READS = (JUDGMENTS, SPLITS, QUERIES, ITEMS, COLLECTION_STATISTICS)

PUBLISHES = (RUN_METRICS, UNSERVED_QUERIES)

_FUSED = "fused"

log = logging.getLogger("ecomspark")


class Config(Settings):
    """Which judgments, which sources, which slices; and from when on a query is badly served."""

    judgment_set: Name = setting(..., "which judgments")
    split: Name = setting("default", "which split of the queries")
    side: Literal["train", "validation", "test"] = setting("test", "which side of it")
    ks: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = setting(
        [20, 100], "places that recall looks at; to the last of them both sources search", unit="places"
    )
    embedding: Search = setting(Search(), "items near in meaning; without an encoder BM25 is measured alone")
    max_proposing_share: float = setting(
        0.1, "a term that more than this share of the items have does not propose, as for build_candidates", gt=0, le=1
    )
    fusion_constant: int = setting(60, "of reciprocal rank fusion: what is added to each rank", ge=0)
    grade_threshold: float = setting(2.0, "grade from which an item counts as relevant")
    resamples: int = setting(2_000, "bootstrap resamples of the queries", ge=100)
    seed: int = setting(20_111_031, "of the resamples")
    min_queries: int = setting(10, "figures of a slice over fewer are left out", unit="queries", ge=1)
    head_share: float = setting(1 / 3, "the most asked queries, up to this share of traffic, are its head", gt=0, lt=1)
    tail_share: float = setting(1 / 3, "the least asked ones, from where this share is left, are its tail", gt=0, lt=1)
    longest_words: int = setting(4, "queries of so many words or more are one slice", unit="words", ge=2)
    categories: int = setting(8, "categories with the most queries that are slices; the rest is one", ge=1)
    category_parts: int = setting(1, "first parts of a category's path that name it", ge=1)
    few_matches: int = setting(
        20, "a query for which BM25 proposes fewer items has few lexical matches", unit="items", ge=0
    )
    near_cosine: float = setting(
        0.35, "an item of at least this cosine is near a query; what is right depends on the encoder", ge=-1, le=1
    )
    min_recall: float = setting(
        0.5, "a judged query of whose relevant items all sources together find less is badly served", ge=0, le=1
    )

    @model_validator(mode="after")
    def _shares(self) -> "Config":
        if self.head_share + self.tail_share > 1:
            raise ValueError("head_share and tail_share: expected 1 at most together")
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    encoder = _encoder(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        settings_digest=_digest(config, encoder),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            judged = current.keep(_judged(current, config))
            current.count(**_counts(current, judged, config))
            depth = max(config.ks)
            ranked: dict[str, DataFrame] = {}
            with current.stage(BM25):
                # As deep as it must be known how many items match.
                matched = current.keep(_by_bm25(current, config, max(depth, config.few_matches)))
                ranked[BM25] = matched.where(F.col("place") <= depth)
                current.count(found_by_bm25=ranked[BM25].count())
            if encoder is not None:
                with current.stage(EMBEDDING):
                    queries, items = current.read(QUERIES), current.read(ITEMS)
                    near = nearest_items(current, queries, items, encoder, config.embedding, depth)
                    ranked[EMBEDDING] = current.keep(near)
                    current.count(found_by_embedding=ranked[EMBEDDING].count())
            with current.stage("metrics"):
                figures = _figures(
                    _frame(current, judged, ranked, matched, config), list(_orders(ranked, config)), config
                )
                rows = _rows(figures, config, run_id)
                frame = spark.createDataFrame(rows, tables.ddl(RUN_METRICS))
                current.commit(tables.append_log(warehouse, RUN_METRICS, frame, current.author))
                current.count(figures=len(rows))
            with current.stage("unserved"):
                _publish_unserved(current, {**ranked, BM25: matched}, config)
            # Names of the other slices may come from the shop's rows: they are in the table only.
            for line in as_table(figures[ALL]):
                log.info("%s: %s", JOB, line)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would measure now: how many queries are searched for, in how many items, by how many judgments."""
    encoder = _encoder(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers={}, as_of=as_of) as current:
        judged = current.keep(_judged(current, config))
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=_digest(config, encoder).hex(),
            inputs=as_pins(current.inputs),
            covers={},
            counts=_counts(current, judged, config),
        )


def _encoder(config: Config) -> Checkpoint | None:
    name = config.embedding.encoder
    if name is None:
        return None
    return open_checkpoint(config.models_folder, name, "encoder", data_type=config.data_types.get(name))


def _digest(config: Config, encoder: Checkpoint | None) -> bytes:
    return config.deciding_digest(*([encoder.scorer_digest.hex()] if encoder else []))


def _judged(current: Run, config: Config) -> DataFrame:
    """(query_id, item_id, grade, is_of_side) of the judgment set."""
    of_side = current.read(SPLITS).where((F.col("split") == config.split) & (F.col("side") == config.side))
    of_set = current.read(JUDGMENTS).where(F.col("judgment_set") == config.judgment_set)
    marked = of_set.join(of_side.select("query_id", F.lit(True).alias("_side")), on="query_id", how="left")
    return marked.select("query_id", "item_id", "grade", F.coalesce("_side", F.lit(False)).alias("is_of_side"))


def _counts(current: Run, judged: DataFrame, config: Config) -> dict[str, int]:
    """What is measured, by name. Raises ContractError when nothing judged on the side is relevant."""
    is_relevant = F.col("is_of_side") & (F.col("grade") >= config.grade_threshold)
    said = judged.agg(
        F.count_if("is_of_side").alias("pairs"), F.count_if(is_relevant).alias("relevant"),
        F.count_distinct(F.when(F.col("is_of_side"), F.col("query_id"))).alias("queries"),
    ).collect()[0]  # fmt: skip
    if not said["relevant"]:
        raise ContractError(
            f"judgments: expected relevant items (grade {config.grade_threshold:g} or more) in {config.judgment_set} "
            f"on the {config.side} side of split {config.split}, found none of {said['pairs']:,} pairs; judge some, "
            "name another side, or run the job that makes the split"
        )
    return {
        "queries": current.read(QUERIES).count(),
        "items": current.read(ITEMS).count(),
        "judged_queries": said["queries"],
        "judged_pairs": said["pairs"],
        "relevant_pairs": said["relevant"],
    }


def _by_bm25(current: Run, config: Config, depth: int) -> DataFrame:
    """(query_id, item_id, score, place): the best items of every query by BM25, by the statistics that are there."""
    item_terms = checked_item_terms(current, config.analysers, config.bm25)
    version = config.bm25.statistics_version
    statistics = current.read(COLLECTION_STATISTICS).where(F.col("statistics_version") == version)
    if statistics.isEmpty():
        raise ContractError(
            f"collection_statistics: expected version {version}, found none of it; run build_candidates with bm25 first"
        )
    postings = lexical.postings(item_terms, statistics, config.bm25)
    terms = tables.read_memory(current.warehouse, TERMS)
    query_terms = lexical.query_terms(current.read(QUERIES), terms, config.analysers)
    return lexical.best_items(query_terms, postings, statistics, depth, config.max_proposing_share)


def _orders(ranked: dict[str, DataFrame], config: Config) -> dict[str, DataFrame]:
    """What each source ranks, and both fused where there are two: the last of them leads."""
    return {**ranked, _FUSED: fused(ranked, config.fusion_constant)} if len(ranked) > 1 else ranked


def _frame(
    current: Run, judged: DataFrame, ranked: dict[str, DataFrame], matched: DataFrame, config: Config
) -> pd.DataFrame:
    """The judged pairs of the side, with the rank at which each source found the item, and what `slices_of` reads.
    `matched`: what BM25 finds, `few_matches` deep."""
    matches = matched.groupBy("query_id").agg(F.count("*").alias("matches"))
    of_query = current.read(QUERIES).select(
        "query_id", "locale", "traffic", F.size(F.split("query_text", " ")).alias("words")
    )
    of_item = current.read(ITEMS).select("item_id", "category")
    pairs = judged.where("is_of_side").join(of_query, on="query_id", how="inner")
    pairs = pairs.join(of_item, on="item_id", how="left").join(matches, on="query_id", how="left")
    orders = _orders(ranked, config)
    for name, rows in orders.items():
        of_source = rows.select("query_id", "item_id", F.col("place").alias(name))
        pairs = pairs.join(of_source, on=["query_id", "item_id"], how="left")
    frame = pairs.select(
        F.hex("query_id").alias("query_id"), "item_id", "grade", "locale", "traffic", "words", "category",
        F.lit(None).cast("boolean").alias("is_new"), F.coalesce("matches", F.lit(0)).alias("matches"), *orders,
    ).toPandas()  # fmt: skip
    return frame.sort_values(["query_id", "item_id"], ignore_index=True)


def _figures(pairs: pd.DataFrame, sources: list[str], config: Config) -> dict[str, list[Figure]]:
    bounds = Bounds(
        config.head_share, config.tail_share, config.longest_words, config.categories, config.category_parts,
        config.grade_threshold, config.few_matches,
    )  # fmt: skip
    measures = Measures(config.gains, None, config.grade_threshold, config.resamples, shuffles=0, seed=config.seed)
    return recall_figures(
        pairs, sources, slices_of(pairs, bounds), sorted(set(config.ks)), measures, config.min_queries
    )


def _rows(figures: dict[str, list[Figure]], config: Config, run_id: str) -> list[tuple[object, ...]]:
    """Rows of `run_metrics`."""
    keys = {"job": JOB, "run_id": run_id, "judgment_set": config.judgment_set}
    return [
        tuple({**keys, "slice": name, **vars(figure)}[column] for column in RUN_METRICS.column_names)
        for name, of_slice in figures.items()
        for figure in of_slice
    ]


def _publish_unserved(current: Run, ranked: dict[str, DataFrame], config: Config) -> None:
    relevant = current.read(JUDGMENTS).where(
        (F.col("judgment_set") == config.judgment_set) & (F.col("grade") >= config.grade_threshold)
    )
    rows = unserved(
        current.read(QUERIES), ranked[BM25], ranked.get(EMBEDDING), relevant, config.few_matches, config.near_cosine,
        config.min_recall,
    )  # fmt: skip
    change = tables.compare(current.warehouse, UNSERVED_QUERIES, rows, current.author)
    current.count(unserved=change.given, unserved_new=change.inserted, unserved_gone=change.deleted)
    current.commit(tables.publish(current.warehouse, change, current.author))
