"""Which items are worth scoring for each query: the best by BM25, the nearest in meaning, and pairs that are given."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.features import bm25 as lexical
from ecomspark.features.candidates import (
    BM25,
    EMBEDDING,
    IMPRESSIONS,
    JUDGED,
    Proposer,
    fused,
    judged_pairs,
    shown_pairs,
    together,
    with_margin,
)
from ecomspark.features.texts import queries_by_alias
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.retrieval import Search, checked_item_terms, nearest_items
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import (
    CANDIDATES,
    COLLECTION_STATISTICS,
    INTERACTIONS,
    ITEMS,
    JUDGMENTS,
    QUERIES,
    QUERY_ALIASES,
    SPLITS,
    TERMS,
    TEXTS,
)
from ecomspark.tables import Warehouse

JOB = "build_candidates"

READS = (QUERIES, ITEMS, CANDIDATES, COLLECTION_STATISTICS, JUDGMENTS, INTERACTIONS, QUERY_ALIASES, SPLITS)

PUBLISHES = (CANDIDATES, COLLECTION_STATISTICS)


class Config(Settings):
    """BM25's own settings are shared keys: rankings are judged against it."""

    sources: Annotated[list[Proposer], Field(min_length=1)] = setting(["bm25", "judged"], "who may propose")
    count: int = setting(100, "items that BM25 proposes for a query", unit="items", ge=1)
    margin: int = setting(
        20, "places below its count to which an item that was proposed may fall before it leaves", unit="places", ge=0
    )
    embedding: Search = setting(Search(), "items near in meaning: the source `embedding`")
    fused_count: int | None = setting(
        None,
        "items kept of those that bm25 and embedding propose for a query, the best by their fused ranks; null: all",
        unit="items",
        ge=1,
    )
    fusion_constant: int = setting(60, "of reciprocal rank fusion: what is added to each rank", ge=0)
    max_proposing_share: float = setting(
        0.1, "a term that more than this share of the items have does not propose, it only scores", gt=0, le=1
    )
    judgment_sets: list[Name] | None = setting(None, "which judgments are given as candidates; null: all")
    judged_sides: list[Literal["train", "validation", "test"]] | None = setting(
        None,
        "of which sides of `split` judged queries give candidates; null: of all, in the split or not",
        min_length=1,
    )
    split: Name = setting("default", "which split `judged_sides` are of")
    makes_statistics: bool = setting(
        False, "make BM25's statistics also when it does not propose, for evaluate_rankings to compare with"
    )

    @model_validator(mode="after")
    def _has_encoder(self) -> "Config":
        if EMBEDDING in self.sources and self.embedding.encoder is None:
            raise ValueError("embedding.encoder: missing; the source `embedding` needs the vectors of one")
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    encoder = _encoder(config)
    digest = config.deciding_digest(*([encoder.scorer_digest.hex()] if encoder else []))
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        settings_digest=digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            items = current.read(ITEMS)
            proposals: dict[str, DataFrame] = {}
            if BM25 in config.sources:
                with current.stage("bm25"):
                    proposals[BM25] = current.keep(_by_bm25(current, config))
                    current.count(proposed_by_bm25=proposals[BM25].count())
            elif config.makes_statistics:
                with current.stage("statistics"):
                    _statistics(
                        current,
                        checked_item_terms(current, config.analysers, config.bm25),
                        config.bm25.statistics_version,
                    )
            if encoder is not None:
                with current.stage("embedding"):
                    proposals[EMBEDDING] = current.keep(_by_embedding(current, encoder, config))
                    current.count(proposed_by_embedding=proposals[EMBEDDING].count())
            if config.fused_count is not None:
                proposals = _best_fused(current, proposals, config.fused_count, config)
            if JUDGED in config.sources:
                proposals[JUDGED] = judged_pairs(_judgments(current, config), config.judgment_sets)
            if IMPRESSIONS in config.sources:
                texts = tables.read_memory(warehouse, TEXTS)
                known = queries_by_alias(current.read_if_there(QUERY_ALIASES), texts)
                proposals[IMPRESSIONS] = shown_pairs(current.read_if_there(INTERACTIONS), known)
            with current.stage("publish"):
                candidates = together(proposals, items)
                change = tables.compare(warehouse, CANDIDATES, candidates, current.author)
                current.count(
                    candidates=change.given, new=change.inserted, changed=change.updated, dropped=change.deleted
                )
                current.commit(tables.publish(warehouse, change, current.author))
    return current.summary()


def _encoder(config: Config) -> Checkpoint | None:
    """The encoder by whose vectors items are proposed; None where none are."""
    name = config.embedding.encoder
    if EMBEDDING not in config.sources or name is None:
        return None
    return open_checkpoint(config.models_folder, name, "encoder", data_type=config.data_types.get(name))


def _judgments(current: Run, config: Config) -> DataFrame:
    """The judgments that may give candidates: all, or those of queries on the sides asked for."""
    judgments = current.read_if_there(JUDGMENTS)
    if config.judged_sides is None:
        return judgments
    split = current.read(SPLITS).where(F.col("split") == config.split)
    asked = split.where(F.col("side").isin(list(config.judged_sides))).select("query_id")
    return judgments.join(asked, on="query_id", how="left_semi")


def _by_bm25(current: Run, config: Config) -> DataFrame:
    item_terms = checked_item_terms(current, config.analysers, config.bm25)
    terms = tables.read_memory(current.warehouse, TERMS)
    statistics = _statistics(current, item_terms, config.bm25.statistics_version)
    postings = lexical.postings(item_terms, statistics, config.bm25)
    query_terms = lexical.query_terms(current.read(QUERIES), terms, config.analysers)
    places = config.count + config.margin
    best = lexical.best_items(query_terms, postings, statistics, places, config.max_proposing_share)
    return with_margin(best, current.read_if_there(CANDIDATES), [BM25], config.count)


def _by_embedding(current: Run, encoder: Checkpoint, config: Config) -> DataFrame:
    how = config.embedding
    places = how.count + config.margin
    best = nearest_items(current, current.read(QUERIES), current.read(ITEMS), encoder, how, places)
    return with_margin(best, current.read_if_there(CANDIDATES), [EMBEDDING], how.count)


def _best_fused(current: Run, proposals: dict[str, DataFrame], count: int, config: Config) -> dict[str, DataFrame]:
    """Of what ranked sources propose the best by their fused ranks; each source keeps its own score of these."""
    if not proposals:
        return proposals
    best = fused(proposals, config.fusion_constant).where(F.col("place") <= count + config.margin)
    kept = current.keep(with_margin(best, current.read_if_there(CANDIDATES), list(proposals), count))
    current.count(fused=kept.count())
    pair = ["query_id", "item_id"]
    return {name: rows.join(kept.select(*pair), on=pair, how="left_semi") for name, rows in proposals.items()}


def _statistics(current: Run, item_terms: DataFrame, version: int) -> DataFrame:
    """The statistics of a version; those of a locale that lacks them are made and published first."""
    there = current.read_if_there(COLLECTION_STATISTICS).where(F.col("statistics_version") == version)
    known = there.where("term = ''").select("locale")
    lacking = item_terms.join(known, on="locale", how="left_anti")
    if lacking.isEmpty():
        return there
    made = lexical.statistics(lacking, version)
    change = tables.compare(current.warehouse, COLLECTION_STATISTICS, made, current.author, deletes=False)
    current.count(statistics=change.inserted)
    current.commit(tables.publish(current.warehouse, change, current.author))
    newest = tables.snapshot(current.warehouse, COLLECTION_STATISTICS)
    return tables.read(current.warehouse, COLLECTION_STATISTICS, newest).where(F.col("statistics_version") == version)
