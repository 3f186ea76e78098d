"""The Online Retail log, from invoice lines into `items` and `interactions`: the importer of the sample shop.

Who bought is taken over as a pseudonym of CustomerID, where there is a key for it (`shoppers`); a quarter of the lines
name nobody. A log only grows: interactions that were imported without stay without.
"""

from dataclasses import replace
from datetime import date

from pyspark.sql import DataFrame, SparkSession

from ecomspark import tables
from ecomspark.config import setting
from ecomspark.features.conform import ColumnMap, usable
from ecomspark.features.online_retail import COLUMNS, LINES, RULES, SHOPPER, interactions_of, items_of, numbered
from ecomspark.features.texts import with_source_digest
from ecomspark.importing import (
    BehaviourSettings,
    conformed_rows,
    declare_consents,
    publish_guarded,
    set_aside,
    with_pseudonyms,
)
from ecomspark.pseudonyms import check_key
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import CONSENTS, INTERACTIONS, ITEMS
from ecomspark.tables import Warehouse

JOB = "import_online_retail"

PUBLISHES = (ITEMS, INTERACTIONS, CONSENTS)


class Config(BehaviourSettings):
    """The log's own column names are the default mapping; with `shoppers`, who bought is its CustomerID."""

    columns: dict[str, ColumnMap] = setting(
        {ours: ColumnMap.model_validate(theirs) for ours, theirs in COLUMNS.items()},
        "what a line is made of, from the log's columns; `shopper_id` is CustomerID where `shoppers` has a key",
    )
    max_quarantined_share: float = setting(
        0.02, "stop when more than this share of the lines cannot be used", decides=False, ge=0, le=1
    )


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    """Raises ConfigError, before anything is read, when there is no key in `shoppers.key_file`."""
    if config.shoppers is not None:
        check_key(config.shoppers)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest()
    with open_run(
        warehouse,
        JOB,
        run_id,
        source=config.source,
        publishes=PUBLISHES if config.consent else (ITEMS, INTERACTIONS),
        settings_digest=digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("lines"):
                conformed = current.keep(_conformed(current, config))
                set_aside(current, conformed, LINES, config.max_quarantined_share)
                lines = usable(conformed)
            with current.stage("items"):
                items = with_source_digest(items_of(lines))
                is_snapshot = config.mode == "snapshot"
                change = tables.compare(warehouse, ITEMS, items, current.author, deletes=is_snapshot)
                publish_guarded(current, change, config)
            with current.stage("interactions"):
                interactions = interactions_of(lines)
                commit = tables.append_log(warehouse, INTERACTIONS, interactions, current.author)
                current.count(appended=commit.inserted)
                current.commit(commit)
            if config.consent is not None:
                with current.stage("consents"):
                    declare_consents(current, config.consent, interactions)
    return current.summary()


def _conformed(current: Run, config: Config) -> DataFrame:
    sourced, columns = current.sourced, config.columns
    needed = {column.source for column in columns.values()} - {"line"}
    if needed <= set(sourced.rows.columns):  # otherwise conformed_rows says what is missing
        sourced = replace(sourced, rows=numbered(sourced.rows))
    if config.shoppers is not None:
        columns = {"shopper_id": ColumnMap.model_validate(SHOPPER), **columns}
        sourced, columns = with_pseudonyms(sourced, columns, ("shopper_id",), config.shoppers)
    return conformed_rows(sourced, columns, LINES, RULES)
