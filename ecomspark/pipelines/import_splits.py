"""The sides that a data set gives its queries, into `splits`, under the query_id that build_texts has made known."""

from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, setting
from ecomspark.errors import ConfigError, ContractError
from ecomspark.features.conform import ColumnMap, quarantine_rows, usable
from ecomspark.features.splits import given_sides
from ecomspark.features.texts import LATER_REASONS, queries_by_alias
from ecomspark.importing import ImportSettings, conformed_rows, publish_guarded, quarantine, set_aside
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import QUERY_ALIASES, SPLITS, TEXTS, Table, column
from ecomspark.tables import Warehouse

JOB = "import_splits"

READS = (QUERY_ALIASES,)

PUBLISHES = (SPLITS,)

RULES = {"side_unknown": "side NOT IN ('train', 'validation', 'test')"}

# What a source gives; it is no table of its own, `quarantine` names its rows by it.
GIVEN = Table(
    "split_aliases",
    one_row="a query's side as its source had it, before the query is known by query_id",
    kind="state",
    key=("split", "source", "source_query_id"),
    columns=(
        column("split", "string", "name of the split"),
        column("source", "string", "the `source` of the query's alias"),
        column("source_query_id", "string", "the source's own id of the query"),
        column("side", "string", "train, validation or test"),
    ),
    bytes_a_row=60,
)


class Config(ImportSettings):
    """`columns` maps to source_query_id and side; rows of one query that say the same are one."""

    source_name: Name = setting(..., "the source_name under which import_queries imported the queries")
    split: Name = setting("default", "what the split is called; finetune_cross_encoder and evaluate_rankings name it")
    validation_share: float = setting(
        0.0, "share of the queries on the training side that go over to validation, each by its own draw", ge=0, lt=1
    )
    seed: int = setting(13, "of that draw")


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        source=config.source,
        target=config.split,
        publishes=PUBLISHES,
        settings_digest=config.deciding_digest(),
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("import"):
                _import(current, config)
    return current.summary()


def _import(current: Run, config: Config) -> None:
    if config.mode == "append":
        raise ConfigError(f"{JOB}.mode: splits takes snapshot or upsert; append is for logs")
    given = {"split": config.split, "source": config.source_name}
    if twice := sorted(set(given) & set(config.columns)):
        raise ConfigError(f"{JOB}.columns: {', '.join(twice)}: has a key of its own in the section")
    constants = {name: ColumnMap.model_validate({"constant": value}) for name, value in given.items()}
    conformed = conformed_rows(current.sourced, {**config.columns, **constants}, GIVEN, RULES)
    conformed = current.keep(conformed)
    set_aside(current, conformed, GIVEN, config.max_quarantined_share)
    known = queries_by_alias(current.read(QUERY_ALIASES), tables.read_memory(current.warehouse, TEXTS))
    alias = ["source", "source_query_id"]
    named = current.keep(usable(conformed).join(known, on=alias, how="left"))
    _check_queries(current, named, config.max_quarantined_share)
    rows = current.keep(
        given_sides(named.where("query_id IS NOT NULL"), config.split, config.seed, config.validation_share)
    )
    _count(current, rows)
    # A query of which a row cannot be used keeps the side that is published.
    unusable = conformed.where(F.size("_reasons") > 0).select(*alias).distinct()
    kept = known.join(unusable, on=alias, how="left_semi").select("query_id").distinct()
    change = tables.compare(
        current.warehouse,
        SPLITS,
        rows.drop("is_on_two_sides"),
        current.author,
        scope=F.col("split") == config.split,
        keep=kept.join(rows.select("query_id"), on="query_id", how="left_anti"),
        deletes=config.mode == "snapshot",
    )
    publish_guarded(current, change, config)


def _check_queries(current: Run, named: DataFrame, max_share: float) -> None:
    """Set aside the rows whose query nobody knows. Raises ContractError when they are too many."""
    unknown = named.where("query_id IS NULL").withColumn("reason", F.lit("unknown_query"))
    counts = named.agg(F.count("*").alias("read"), F.count_if(F.col("query_id").isNull()).alias("unknown")).collect()[0]
    row = F.to_json(F.struct(*GIVEN.column_names))
    own = F.col("reason").isin(list(LATER_REASONS))
    quarantine(current, GIVEN, quarantine_rows(unknown, GIVEN, row), named.where("query_id IS NOT NULL"), own)
    if not counts["unknown"]:
        return
    current.count(unknown_queries=int(counts["unknown"]))
    if counts["unknown"] > max_share * counts["read"]:
        raise ContractError(
            f"splits: expected at most {max_share:.2%} of the queries to be unknown, found {counts['unknown']:,} of "
            f"{counts['read']:,}; run import_queries and build_texts first, or raise {JOB}.max_quarantined_share"
        )


def _count(current: Run, rows: DataFrame) -> None:
    """How many queries are on each side, and how many the source had on two."""
    by_side = rows.groupBy("side").agg(F.count("*").alias("queries"), F.count_if("is_on_two_sides").alias("doubled"))
    found = by_side.collect()
    current.count(**{f"{row['side']}_queries": int(row["queries"]) for row in found})
    if doubled := sum(int(row["doubled"]) for row in found):
        current.count(queries_on_two_sides=doubled)
