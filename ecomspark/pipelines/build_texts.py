"""Queries of aliases, judgments under query_id, and the texts and terms of queries and items that are not there yet."""

from collections.abc import Callable
from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Settings, setting
from ecomspark.errors import ContractError
from ecomspark.features import texts as steps
from ecomspark.features.conform import quarantine_rows
from ecomspark.importing import quarantine
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import ITEMS, JUDGMENT_ALIASES, JUDGMENTS, QUERIES, QUERY_ALIASES, TERMS, TEXTS, Table
from ecomspark.tables import Warehouse
from ecomspark.text import IDENTITY_RECIPE_DIGEST

JOB = "build_texts"

READS = (ITEMS, QUERY_ALIASES, JUDGMENT_ALIASES)

PUBLISHES = (QUERIES, JUDGMENTS, TEXTS, TERMS)


class Config(Settings):
    """The recipe and the languages are shared keys."""

    max_quarantined_share: float = setting(
        0.01, "stop when more than this share of the judgments cannot be used", decides=False, ge=0, le=1
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
            items, aliases = current.read(ITEMS), current.read(QUERY_ALIASES)
            with current.stage("queries"):
                _texts(current, steps.alias_sources(aliases), "query", IDENTITY_RECIPE_DIGEST, steps.identities)
                texts = tables.read_memory(warehouse, TEXTS)
                _set_empty_aside(current, aliases, steps.empty_aliases(aliases, texts))
                judged = tables.kept(steps.judgments_of(current.read_if_there(JUDGMENT_ALIASES), aliases, texts))
                _check_judgments(current, judged, config.max_quarantined_share)
                queries = tables.kept(steps.queries_of(aliases, texts))
                _publish(current, QUERIES, queries)
            with current.stage("judgments"):
                _publish_judgments(current, judged)
                judged.unpersist()
            with current.stage("texts"):
                recipe = config.recipe
                of_queries, of_items = steps.query_sources(queries), steps.item_sources(items)
                _texts(current, of_queries, "query", recipe.digest, lambda rows: steps.query_texts(rows, recipe))
                _texts(current, of_items, "passage", recipe.digest, lambda rows: steps.passages(rows, recipe))
            with current.stage("terms"):
                fields = queries.select("locale", F.col("query_text").alias("text"))
                fields = steps.searched_fields(items).unionByName(fields)
                lacking = steps.lacking_terms(fields, tables.read_memory(warehouse, TERMS), config.analysers)
                _append(current, TERMS, lacking, lambda rows: steps.made_terms(rows, config.analysers))
            queries.unpersist()
    return current.summary()


def _texts(
    current: Run, sources: DataFrame, role: str, recipe_digest: bytes, make: Callable[[DataFrame], DataFrame]
) -> None:
    texts = tables.read_memory(current.warehouse, TEXTS)
    _append(current, TEXTS, steps.lacking(sources, texts, role, recipe_digest), make)


def _append(current: Run, table: Table, lacking: DataFrame, make: Callable[[DataFrame], DataFrame]) -> None:
    """Make what is lacking and append it; where nothing is, no Python is started and nothing committed."""
    lacking = tables.kept(lacking)
    if not lacking.isEmpty():
        commit = tables.append_memory(current.warehouse, table, make(lacking), current.author)
        current.count(**{table.name: commit.inserted})
        current.commit(commit)
    lacking.unpersist()


def _publish(current: Run, table: Table, rows: DataFrame, keep: DataFrame | None = None) -> None:
    change = tables.compare(current.warehouse, table, rows, current.author, keep=keep)
    current.count(**{f"changed_{table.name}": change.inserted + change.updated + change.deleted})
    current.commit(tables.publish(current.warehouse, change, current.author))


def _set_empty_aside(current: Run, aliases: DataFrame, empty: DataFrame) -> None:
    """Keep the aliases of which nothing is left when normalised in `quarantine`: they make no query."""
    empty = tables.kept(empty.withColumn("reason", F.lit("empty_query")))
    row = F.to_json(F.struct("source", "source_query_id", "locale", "query_text", "traffic"))
    rows = quarantine_rows(empty, QUERY_ALIASES, row)
    named = aliases.join(empty.select(*QUERY_ALIASES.key), on=list(QUERY_ALIASES.key), how="left_anti")
    quarantine(current, QUERY_ALIASES, rows, named, F.col("reason") == "empty_query")
    if count := empty.count():
        current.count(empty_queries=count)
    empty.unpersist()


def _check_judgments(current: Run, judged: DataFrame, max_share: float) -> None:
    """Set aside the judgments that cannot be used. Raises ContractError when they are too many; no query is published
    then."""
    counts = judged.agg(F.count("*").alias("read"), F.count("reason").alias("unusable")).collect()[0]
    current.count(judgments=int(counts["read"]), unusable_judgments=int(counts["unusable"]))
    row = F.to_json(F.struct("judgment_set", "source", "source_query_id", "item_id", "grade"))
    rows = quarantine_rows(judged.where(F.col("reason").isNotNull()), JUDGMENT_ALIASES, row)
    own = F.col("reason").isin(list(steps.LATER_REASONS))
    quarantine(current, JUDGMENT_ALIASES, rows, judged.where(F.col("reason").isNull()), own)
    if counts["unusable"] > max_share * counts["read"]:
        raise ContractError(
            f"judgments: expected at most {max_share:.2%} to be unusable, found {counts['unusable']:,} of "
            f"{counts['read']:,}; they are in the table quarantine under judgment_aliases; mend the source or raise "
            "build_texts.max_quarantined_share"
        )


def _publish_judgments(current: Run, judged: DataFrame) -> None:
    """Publish the judgments that can be used; a query and item with a conflict keep the grade they had."""
    key = ["judgment_set", "query_id", "item_id"]
    # Aliases of one query that were judged alike for an item: one grade.
    rows = judged.where(F.col("reason").isNull()).groupBy(*key).agg(F.max("grade").alias("grade"))
    in_conflict = judged.where("reason = 'conflict'").select(*key).distinct()
    _publish(current, JUDGMENTS, rows, keep=in_conflict)
