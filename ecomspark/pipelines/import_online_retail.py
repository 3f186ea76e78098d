"""The Online Retail log, from invoice lines into `items` and `interactions`: the importer of the sample shop."""

from dataclasses import replace
from datetime import date

from pyspark.sql import DataFrame, SparkSession

from ecomspark import tables
from ecomspark.config import setting
from ecomspark.features.conform import ColumnMap, usable
from ecomspark.features.online_retail import COLUMNS, LINES, RULES, interactions_of, items_of, numbered
from ecomspark.features.texts import with_source_digest
from ecomspark.importing import ImportSettings, conformed_rows, publish_guarded, set_aside
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import INTERACTIONS, ITEMS
from ecomspark.tables import Warehouse

JOB = "import_online_retail"

PUBLISHES = (ITEMS, INTERACTIONS)


class Config(ImportSettings):
    """The log's own column names are the default mapping."""

    columns: dict[str, ColumnMap] = setting(
        {ours: ColumnMap.model_validate(theirs) for ours, theirs in COLUMNS.items()},
        "what a line is made of, from the log's columns",
    )
    max_quarantined_share: float = setting(
        0.02, "stop when more than this share of the lines cannot be used", decides=False, ge=0, le=1
    )


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest()
    with open_run(
        warehouse,
        JOB,
        run_id,
        source=config.source,
        publishes=PUBLISHES,
        settings_digest=digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("lines"):
                conformed = _conformed(current, config).persist()
                set_aside(current, conformed, LINES, config.max_quarantined_share)
                lines = usable(conformed)
            with current.stage("items"):
                items = with_source_digest(items_of(lines))
                is_snapshot = config.mode == "snapshot"
                change = tables.compare(warehouse, ITEMS, items, current.author, deletes=is_snapshot)
                publish_guarded(current, change, config)
            with current.stage("interactions"):
                commit = tables.append_log(warehouse, INTERACTIONS, interactions_of(lines), current.author)
                current.count(appended=commit.inserted)
                current.commit(commit)
            conformed.unpersist()
    return current.summary()


def _conformed(current: Run, config: Config) -> DataFrame:
    sourced, needed = current.sourced, {column.source for column in config.columns.values()} - {"line"}
    if needed <= set(sourced.rows.columns):  # otherwise conformed_rows says what is missing
        sourced = replace(sourced, rows=numbered(sourced.rows))
    return conformed_rows(sourced, config.columns, LINES, RULES)
