"""Which items are worth scoring for each query: the best by BM25, and pairs that are given."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import ContractError
from ecomspark.features import bm25 as lexical
from ecomspark.features.candidates import (
    IMPRESSIONS,
    JUDGED,
    Proposer,
    judged_pairs,
    shown_pairs,
    together,
    with_margin,
)
from ecomspark.features.texts import lacking_terms, queries_by_alias, searched_fields
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
        20, "places below `count` to which an item that was proposed may fall before it leaves", unit="places", ge=0
    )
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


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest()
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
            if "bm25" in config.sources:
                with current.stage("bm25"):
                    proposals["bm25"] = _by_bm25(current, config).persist()
                    current.count(proposed_by_bm25=proposals["bm25"].count())
            elif config.makes_statistics:
                with current.stage("statistics"):
                    _statistics(current, _item_terms(current, config), config.bm25.statistics_version)
            if "judged" in config.sources:
                proposals[JUDGED] = judged_pairs(_judgments(current, config), config.judgment_sets)
            if "impressions" in config.sources:
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
            for rows in proposals.values():
                rows.unpersist()
    return current.summary()


def _judgments(current: Run, config: Config) -> DataFrame:
    """The judgments that may give candidates: all, or those of queries on the sides asked for."""
    judgments = current.read_if_there(JUDGMENTS)
    if config.judged_sides is None:
        return judgments
    split = current.read(SPLITS).where(F.col("split") == config.split)
    asked = split.where(F.col("side").isin(list(config.judged_sides))).select("query_id")
    return judgments.join(asked, on="query_id", how="left_semi")


def _by_bm25(current: Run, config: Config) -> DataFrame:
    item_terms = _item_terms(current, config)
    terms = tables.read_memory(current.warehouse, TERMS)
    statistics = _statistics(current, item_terms, config.bm25.statistics_version)
    postings = lexical.postings(item_terms, statistics, config.bm25)
    query_terms = lexical.query_terms(current.read(QUERIES), terms, config.analysers)
    places = config.count + config.margin
    best = lexical.best_items(query_terms, postings, statistics, places, config.max_proposing_share)
    return with_margin(best, current.read_if_there(CANDIDATES), "bm25", config.count)


def _item_terms(current: Run, config: Config) -> DataFrame:
    """The terms of every item. Raises ContractError when those of a query or a searched field are not made yet."""
    items, terms = current.read(ITEMS), tables.read_memory(current.warehouse, TERMS)
    fields = searched_fields(items).unionByName(
        current.read(QUERIES).select("locale", F.col("query_text").alias("text"))
    )
    if lacking := lacking_terms(fields, terms, config.analysers).count():
        raise ContractError(
            f"terms: expected those of every query and searched field under the settings' languages, found {lacking:,} "
            "texts without; run build_texts first"
        )
    return lexical.item_terms(items, terms, config.analysers, config.bm25)


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
